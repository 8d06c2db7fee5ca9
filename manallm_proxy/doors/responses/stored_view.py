"""A stored response and its input items, as clients see them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from manallm_proxy.contract.records import frozen
from manallm_proxy.doors.carried import KEPT
from manallm_proxy.doors.responses.store import Stored
from manallm_proxy.openai.json_object import decode_leniently
from manallm_proxy.openai.request_fields import wrong

_MOST: Final = 100
_PREFIXES: Final = {"function_call": "fc", "custom_tool_call": "ctc", "reasoning": "rs", "message": "msg"}


@frozen
class Page:
    """Which page of a list is requested."""

    limit: int = 20
    ascending: bool = False
    after: str | None = None

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Page:
        """Raises InvalidRequest, with ``param``, if ``limit`` or ``order`` is invalid."""
        limit, order = query.get("limit", "20"), query.get("order", "desc")
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= _MOST):
            raise wrong("limit", f"a whole number from 1 to {_MOST}")
        if order not in ("asc", "desc"):
            raise wrong("order", "'asc' or 'desc'")
        return cls(int(limit), order == "asc", query.get("after"))


def response_view(stored: Stored) -> dict[str, Any]:
    """The response object, as in the original answer."""
    shell: dict[str, Any] = msgspec.json.decode(stored.shell)
    return {**shell, "output": [_shown(decode_leniently(data)) for data in stored.output]}


def input_view(stored: Stored, page: Page) -> dict[str, Any]:
    """A page of the input items, newest first by default. Each has a unique id.

    Raises InvalidRequest if ``after`` is not the id of any.
    """
    by_id: dict[str, dict[str, Any]] = {}
    for n, data in enumerate(stored.input):
        row = _listed(decode_leniently(data), f"{stored.id}/{n}", by_id.keys())
        by_id[row["id"]] = row
    rows = list(by_id.values())
    if not page.ascending:
        rows.reverse()
    if page.after is not None and page.after not in by_id:
        raise wrong("after", "the id of an item of this response")
    start = 0 if page.after is None else 1 + rows.index(by_id[page.after])
    shown = rows[start : start + page.limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + len(shown) < len(rows),
    }


def _listed(item: dict[str, Any], place: str, taken: Collection[str]) -> dict[str, Any]:
    """`item` in full form, even if it was sent in short form, with an id.

    A missing id, or one already `taken` since the item was sent twice, is derived from `place`, so that it is stable.
    """
    kind = item.get("type") or "message"
    row = {**_shown(item), "type": kind}
    if not isinstance(row.get("id"), str) or row["id"] in taken:
        row["id"] = f"{_PREFIXES.get(kind, 'item')}_{hashlib.sha256(place.encode()).hexdigest()[:48]}"
    if kind == "message":
        row.setdefault("status", "completed")
        if isinstance(row.get("content"), str):
            row["content"] = [_text_part(row.get("role"), row["content"])]
    return row


def _text_part(role: object, text: str) -> dict[str, Any]:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    """`item` without the data added for its provider."""
    return {key: value for key, value in item.items() if key != KEPT}
