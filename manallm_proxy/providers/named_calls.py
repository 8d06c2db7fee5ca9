"""Rejects tool calls without a name, which no client can execute, unless the answer was cut by its length."""

from __future__ import annotations

from typing import Final

from attrs import evolve

from manallm_proxy.contract.answers import Delta
from manallm_proxy.contract.provider_errors import BadResponse

_CUT: Final = frozenset({"length", "content_filter"})
"""Finish reasons after which an incomplete call is legitimate."""


def require_names(delta: Delta, finish: str | None) -> Delta:
    """`delta`, which holds complete calls, without those that were cut before their name.

    Raises BadResponse if a call has no name, and by its `finish` the answer was not cut.
    """
    if all(call.name for call in delta.tool_calls):
        return delta
    if finish not in _CUT:
        raise nameless_call()
    return evolve(delta, tool_calls=tuple([call for call in delta.tool_calls if call.name]))


def nameless_call() -> BadResponse:
    return BadResponse("the model called a tool without a name", detail="tool call without a name")
