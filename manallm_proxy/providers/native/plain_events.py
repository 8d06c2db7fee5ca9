"""Tells events that only add a few words, and arrive together, by one look at all of them.

Between the events of such a run stand the same bytes, up to the JSON of the next. With a ``null`` and a line break in
their place all of them are one array, which is decoded at once. Nothing in these events is a list with anything in it,
a JSON string holds no line break, and an object has no ``null`` for a key: so an array in which every other element is
an event is proof that each of them is whole by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from manallm_proxy.openai.json_object import DecodeErrors
from manallm_proxy.providers.answer_bounds import EVENT_BYTES

_NAME: Final = b"event: "
_DATA: Final = b"data: "
_BLANK: Final = b"\n\n"
_NONE: Final = b",null,\n"
NOT_PLAIN: Final = -1
DELTAS: Final = (
    "response.output_text.delta",
    "response.function_call_arguments.delta",
    "response.reasoning_summary_text.delta",
    "response.reasoning_text.delta",
    "response.custom_tool_call_input.delta",
    "response.refusal.delta",
)


class _ResponsesDelta(msgspec.Struct, forbid_unknown_fields=True, eq=False, gc=False):
    """All that such an event may hold: what is not here (an ``error``, say) has to be looked at."""

    type: Literal[DELTAS]  # type: ignore[valid-type]  # mypy wants the names written out
    delta: str
    sequence_number: int | None = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None
    logprobs: tuple[()] | None = None
    obfuscation: str | None = None


class _Words(msgspec.Struct, forbid_unknown_fields=True, eq=False, gc=False):
    type: str
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _MessagesDelta(msgspec.Struct, forbid_unknown_fields=True, eq=False, gc=False):
    type: Literal["content_block_delta"]
    index: int
    delta: _Words


class PlainEvents:
    """Those of one format. `kind`: what they hold; `names`: what they are called."""

    def __init__(self, kind: type[msgspec.Struct], names: Iterable[str]) -> None:
        self._decoder = msgspec.json.Decoder(list[kind | None])  # type: ignore[valid-type]  # as above
        self._names = frozenset(name.encode() for name in names)

    def until(self, data: bytes, at: int) -> int:
        """Where the events of one name end that begin `at` that place, as far as they are in `data`.

        The place itself if there are none by their name; `NOT_PLAIN` if one of them has more in it than words.
        """
        named = data.find(b"\n", at) + 1
        if not data.startswith(_NAME, at) or data[at + len(_NAME) : named - 1] not in self._names:
            return at
        start = named + len(_DATA)
        front = data[at:start]
        if not front.endswith(_DATA):
            return at
        run = data[start : at + EVENT_BYTES].split(_BLANK + front)
        last = len(run) - 1
        if b"\n" in b"".join(run[:last]):
            last = next(n for n, each in enumerate(run) if b"\n" in each)
        end = run[last].find(b"\n")
        if end >= 0 and run[last].startswith(_BLANK, end):
            run[last] = run[last][:end]
            last += 1
        del run[last:]  # what is of another name, or has not ended
        if not run:
            return at
        if not self._are_whole(run):
            return NOT_PLAIN
        return at + len(run) * (len(front) + len(_BLANK)) + sum(map(len, run))

    def _are_whole(self, run: list[bytes]) -> bool:
        """Whether each of `run`, which are lines, is one object with nothing unknown in it."""
        array = b"[%b]" % _NONE.join(run)
        if b"\r" in array:
            return False
        try:
            found = self._decoder.decode(array)
        except (msgspec.ValidationError, *DecodeErrors):
            return False
        return len(found) == 2 * len(run) - 1 and found.count(None) == len(run) - 1


RESPONSES: Final = PlainEvents(_ResponsesDelta, DELTAS)
MESSAGES: Final = PlainEvents(_MessagesDelta, ["content_block_delta"])
