"""OpenRouter's ``reasoning_details``: what a model has to get back, unchanged, with the calls that its thinking led to.

Without the signatures in them Gemini 3 and Claude refuse the next turn. A stream has them in parts, and refuses them in
parts: consecutive ones of one type and index are one text (seen by langchain-openrouter, which once sent them as they
came). What is encrypted comes whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.answers import DEFAULT_LIMITS
from manallm_proxy.contract.provider_errors import too_many_items
from manallm_proxy.contract.records import define
from manallm_proxy.openai.joined import joined_text

DETAILS: Final = "reasoning_details"
"""The member of a message that holds them."""
_TEXTS: Final = {"reasoning.text": "text", "reasoning.summary": "summary"}
"""By type of those that come in parts: the member whose text goes on."""


def details_in(message: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Those of a message or of one step of it."""
    rows = message.get(DETAILS)
    return tuple([row for row in rows if isinstance(row, dict)]) if isinstance(rows, list) else ()


@define(eq=False)
class _Detail:
    fields: dict[str, Any] = field(repr=False)
    pieces: list[str] = field(repr=False)
    """Its text, if it has one."""

    def goes_on(self, part: dict[str, Any]) -> bool:
        index = part.get("index")
        kind = part.get("type")
        same = kind in _TEXTS and (kind, index) == (self.fields.get("type"), self.fields.get("index"))
        return same and type(index) is int and part.get("id") in (None, self.fields.get("id"))

    def add(self, part: dict[str, Any]) -> None:
        self.fields |= {key: value for key, value in part.items() if value is not None}
        self.pieces.append(_text(part))

    def whole(self) -> dict[str, Any]:
        member = _TEXTS.get(str(self.fields.get("type")))
        return {**self.fields, member: joined_text(self.pieces)} if member in self.fields else self.fields


@define(eq=False)
class ReasoningDetails:
    """Those of one answer, or of a part of it, as received so far."""

    limit: int = DEFAULT_LIMITS.all_items
    is_needed: bool = False
    """Whether there is a signature or encrypted content among them; else they only repeat the reasoning's text."""
    _rows: list[_Detail] = field(factory=list, repr=False)

    def add(self, parts: Iterable[dict[str, Any]]) -> None:
        """Adds those of one step. Raises BadResponse for too many."""
        for part in parts:
            self.is_needed = self.is_needed or bool(part.get("signature") or part.get("data"))
            if self._rows and self._rows[-1].goes_on(part):
                self._rows[-1].add(part)
                continue
            if len(self._rows) >= self.limit:
                raise too_many_items(self.limit)
            self._rows.append(_Detail(dict(part), [_text(part)]))

    def whole(self) -> list[dict[str, Any]]:
        """As they have to go back."""
        return [row.whole() for row in self._rows]


def _text(part: dict[str, Any]) -> str:
    said = part.get(_TEXTS.get(str(part.get("type")), ""))
    return said if isinstance(said, str) else ""
