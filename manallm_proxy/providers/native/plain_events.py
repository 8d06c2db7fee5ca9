"""Recognises events that only add text, several that arrive together by one check.

The events of such a run are separated by the same bytes. With these replaced by ``null`` and a line break, the run
becomes one JSON array, which is decoded at once. These events contain no lists but empty ones, a JSON string contains
no line break, and ``null`` is no key of an object: so if every other element of the array is an event, each of them is
well-formed by itself.
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
    """All members that such an event may have; with any other one (such as ``error``) it must be parsed."""

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
    """Plain events of one format. `kind`: the struct of their data; `names`: their ``event`` names."""

    def __init__(self, kind: type[msgspec.Struct], names: Iterable[str]) -> None:
        self._decoder = msgspec.json.Decoder(list[kind | None])  # type: ignore[valid-type]  # as above
        self._names = frozenset(name.encode() for name in names)

    def until(self, data: bytes, at: int) -> int:
        """The end of the run of events of one name that begins `at` that position in `data`.

        `at` itself if there are none of such a name; `NOT_PLAIN` if one of them has more than text.
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
        del run[last:]  # an event of another name, or an incomplete one
        if not run:
            return at
        if not self._are_whole(run):
            return NOT_PLAIN
        return at + len(run) * (len(front) + len(_BLANK)) + sum(map(len, run))

    def _are_whole(self, run: list[bytes]) -> bool:
        """Whether each line of `run` is one object without unknown members."""
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
