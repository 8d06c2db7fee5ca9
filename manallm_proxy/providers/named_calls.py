"""Tool calls without a name, which no client can answer: they are the provider's failure, unless its answer was cut."""

from __future__ import annotations

from typing import Final

from attrs import evolve

from manallm_proxy.contract.answers import Delta
from manallm_proxy.contract.provider_errors import BadResponse

_CUT: Final = frozenset({"length", "content_filter"})
"""Finish reasons after which the rest of a call is missing by right."""


def require_names(delta: Delta, finish: str | None) -> Delta:
    """`delta`, which holds whole calls, without those that were cut before their name.

    Raises BadResponse if a call has no name, and the answer was not cut, as far as `finish` tells.
    """
    if all(call.name for call in delta.tool_calls):
        return delta
    if finish not in _CUT:
        raise nameless_call()
    return evolve(delta, tool_calls=tuple([call for call in delta.tool_calls if call.name]))


def nameless_call() -> BadResponse:
    return BadResponse("the model called a tool without a name", detail="tool call without a name")
