"""One content block of an answer: text, thinking, or a tool call."""

from __future__ import annotations

from enum import Enum
from typing import Any

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.doors.carried import KEYS, Carried, pack
from manallm_proxy.openai.call_arguments import Arguments
from manallm_proxy.openai.joined import joined_text
from manallm_proxy.openai.json_object import DecodeErrors, decode_text
from manallm_proxy.openai.reasoning_details import ReasoningDetails


class Kind(Enum):
    """The type of a block. Its value is Anthropic's name for it."""

    TEXT = "text"
    THINKING = "thinking"
    TOOL_USE = "tool_use"


@define(eq=False)
class Block:
    """One content block, as received so far. ``id`` and ``name``: of a tool call."""

    kind: Kind
    id: str = ""
    name: str = ""
    pieces: list[str] = field(factory=list, repr=False)
    """Text, or the JSON text of a tool's input."""
    signature: str = field(default="", repr=False)
    """Of thinking: what the client must return, once the block ends."""
    extras: dict[str, dict[str, Any]] = field(factory=dict, repr=False)
    """See `carried.Carried`, as for ``details`` and ``key``; empty: the reasoning does not go back."""
    details: ReasoningDetails | None = field(default=None, repr=False)
    key: str = ""
    hidden: list[str] = field(factory=list, repr=False)
    """Reasoning that the client does not want to see."""
    sent: int = 0
    """Number of a tool call's ``pieces`` sent; they are kept to detect the end of its input."""
    index: int | None = None
    """Its index in the answer, once its start was sent."""
    arguments: Arguments | None = field(default=None, repr=False)
    """A tool call's ``pieces`` as arguments."""

    def __attrs_post_init__(self) -> None:
        if self.kind is Kind.TOOL_USE:
            self.arguments = Arguments(self.pieces)

    def sign(self, provider: str) -> None:
        """Puts what `provider` must get back into ``signature``, if there is any."""
        if self.key or self.extras or self.details is not None:
            details = self.details.whole() if self.details is not None else []
            hidden = joined_text(self.hidden) if not details else ""
            self.signature = pack(Carried(provider, hidden, self.key or KEYS[0], self.extras, details))

    def unsent(self) -> str:
        """Returns what was added since the last call."""
        new = joined_text(self.pieces[self.sent :])
        if self.kind is Kind.TOOL_USE:
            self.sent = len(self.pieces)
        else:
            self.pieces.clear()
        return new

    @property
    def may_end(self) -> bool:
        """Whether the next block may begin: a tool call ends when its input is complete, other blocks at any time."""
        return self.arguments is None or self.arguments.are_whole

    def empty(self) -> dict[str, Any]:
        """The block as in its start event."""
        match self.kind:
            case Kind.TEXT:
                return {"type": "text", "text": ""}
            case Kind.THINKING:
                return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "tool_use", "id": self.id, "name": self.name, "input": {}}

    def whole(self) -> dict[str, Any]:
        """The block as in a complete answer."""
        text = joined_text([*self.pieces])
        match self.kind:
            case Kind.TEXT:
                return {**self.empty(), "text": text}
            case Kind.THINKING:
                return {**self.empty(), "thinking": text, "signature": self.signature}
        return {**self.empty(), "input": _input(text)}


def _input(text: str) -> dict[str, Any]:
    """A tool's input, decoded. Anything but an object is wrapped in one, under a name that no schema uses."""
    try:
        value = decode_text(text) if text and not text.isspace() else {}
    except DecodeErrors:
        value = text
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"unreadable_input": text}
