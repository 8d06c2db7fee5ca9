"""A request for a provider that natively accepts Responses: the client's own bytes, except for its state.

The proxy stores the state, so the provider is asked to store none, and gets the whole conversation. It gets only
reasoning that it can read: not what this proxy packed, nor what another provider encrypted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec
from attrs import evolve, field

from manallm_proxy.contract.errors import Untranslatable
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.records import define
from manallm_proxy.doors.carried import KEPT, Carried, is_ours, of_item, pack
from manallm_proxy.doors.responses.request import SEALED, Asked
from manallm_proxy.doors.responses.shell import Shell
from manallm_proxy.openai.caller_paths import HistoryPaths
from manallm_proxy.openai.json_object import decode_leniently, encode, holds
from manallm_proxy.openai.large import are_large, free_in_thread, is_large
from manallm_proxy.openai.request import spliced
from manallm_proxy.openai.request_fields import Fields

_OF_ALL: Final = frozenset(
    {"message", "function_call", "custom_tool_call", "image_generation_call", "tool_search_call"}
)
"""Types of items that every provider can read, whoever made them."""
_FOR_ONE: Final = re.compile(rb'"(?:reasoning|encrypted_content|%b)"' % KEPT.encode())
"""Without any of these, an item is readable for all, see `_is_for_one`."""
_PREVIOUS: Final = "previous_response_id"


@define
class NativeForm:
    """One request, see `provider.Native`. ``history``: items of earlier responses."""

    dialect: ClassVar[Endpoint] = Endpoint.RESPONSES
    body: bytes = field(repr=False)
    asked: Asked = field(repr=False)
    history: Sequence[bytes] = field(repr=False)
    resolved: list[Fields] | None = field(repr=False)
    """Its own items, where there are references among them."""
    shell: Shell = field(repr=False)
    request_id: str
    to_chat: Callable[[NativeForm], Call] = field(repr=False)
    """Raises Untranslatable where it has no other form."""
    known: Mapping[int, bytes] = field(factory=dict, repr=False)
    """Those of ``items`` that were references, by their place, as they are stored."""
    is_fixed: bool = field(init=False)

    @is_fixed.default
    def _needs_no_change(self) -> bool:
        """Whether nothing is stored or referred to, so that `write` would only copy the request."""
        asked = self.asked
        if asked.stores or self.history or self.resolved is not None or _PREVIOUS in asked.summary.spans:
            return False
        return asked.is_plain or not any(map(_is_for_one, asked.items()))

    def items(self) -> list[Fields]:
        """Its own, each reference resolved."""
        return self.asked.items() if self.resolved is None else self.resolved

    def shorten(self, *, is_translated: bool) -> None:
        """Drops what can be decoded again; and the body, unless the request `is_translated` for all who may get it."""
        if self.resolved is None:
            free_in_thread(self.asked.forget())
        if is_translated:
            self.asked.body = b""

    def forget(self) -> list[Any]:
        """See `provider.Native`: the answer's reply refers to what was asked."""
        held = [self.asked.body]
        self.shorten(is_translated=True)
        self.asked.summary.forget()
        return held

    @property
    def is_long(self) -> bool:
        """Whether others would feel it if it were read or written in one go."""
        return is_large(self.body) or are_large(self.history) or are_large([*self.known.values()])

    def write(self, provider: str) -> Call:
        """The call for `provider`."""
        asked, body, summary = self.asked, self.body, self.asked.summary
        values = {"store": b"false"} if asked.stores else {}
        if _PREVIOUS in summary.spans:
            values[_PREVIOUS] = b"null"
        before = self._before(provider) if self.history else []
        if before or self.resolved is not None or not (asked.is_plain or self._is_for(provider)):
            _, items, texts = asked.decoded()
            items = items if self.resolved is None else self.resolved
            own = [each for item in items if (each := readable(item, provider)) is not None]
            write = texts.encode_whole if self.is_long else encode
            values["input"] = write([*before, *own])
        if (
            asked.stores
            and "reasoning" in asked.summary.spans
            and asked.fields().get("reasoning")
            and SEALED not in asked.include
        ):
            values["include"] = encode([*sorted(asked.include), SEALED])
        if values:
            body, spans = spliced(body, summary.spans, values)
            summary = evolve(summary, spans=spans)
        call = Call(
            Endpoint.RESPONSES,
            summary,
            body,
            self.request_id,
            response_fields=self.response_fields(),
            is_large=is_large(body),
        )
        if before:
            call.translate_error = HistoryPaths("input", len(before), _PREVIOUS).translate_error
        return call

    def _is_for(self, provider: str) -> bool:
        """Whether `provider` can read all items as they are."""
        return all(readable(item, provider) is item for item in self.items())

    def translate(self, *, for_all: bool) -> Call:
        try:
            return self.to_chat(self)
        except Untranslatable as refusal:
            return Call(Endpoint.RESPONSES, self.asked.summary, self.body, self.request_id, refusal=refusal)
        finally:
            if self.is_long:
                self.shorten(is_translated=for_all)

    def _before(self, provider: str) -> list[Fields | msgspec.Raw]:
        """Items of earlier responses, as far as `provider` can read them."""
        items = (decode_leniently(item) if holds(item, _FOR_ONE) else msgspec.Raw(item) for item in self.history)
        return [
            each
            for item in items
            if (each := item if isinstance(item, msgspec.Raw) else readable(item, provider)) is not None
        ]

    def response_fields(self) -> dict[str, bytes]:
        """Members of the response that repeat the client's request rather than what the provider was sent."""
        previous, store = self.asked.previous, b"true" if self.asked.stores else b"false"
        return {"id": encode(self.shell.id), "store": store, _PREVIOUS: encode(previous) if previous else b"null"}


def _is_for_one(item: Fields) -> bool:
    """Whether `item` may be unreadable for some provider, see `readable`."""
    return KEPT in item or "encrypted_content" in item or item.get("type") == "reasoning"


def readable(item: Fields, provider: str) -> Fields | None:
    """`item` in a form that `provider` can read; None if there is none."""
    if KEPT in item and item.get("type") not in _OF_ALL and of_item(item).provider != provider:
        return None
    if item.get("type") == "reasoning":
        sealed = item.get("encrypted_content")
        if is_ours(sealed) or not (sealed or item.get("content")):
            return None
    elif is_ours(item.get("encrypted_content")):
        item = {key: value for key, value in item.items() if key != "encrypted_content"}
    return {key: value for key, value in item.items() if key != KEPT} if KEPT in item else item


def stored_items(output: Iterable[Any], provider: str) -> list[Fields]:
    """The items of a native answer by `provider`, as they are stored for the next turn.

    Items that other providers cannot read, such as reasoning and searches, are marked with the provider.
    """
    mark = pack(Carried(provider))
    rows = [item for item in output if isinstance(item, dict) and isinstance(item.get("type"), str)]
    return [item if item.get("type") in _OF_ALL else {**item, KEPT: mark} for item in rows]
