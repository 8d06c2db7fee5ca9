"""Where one request stands in a trace: W3C Trace Context, as far as it is ours. Only made where traces are on."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field

TraceHeaders = Mapping[str, str]
"""``traceparent``, and ``tracestate`` where the client sent one: what a provider is given."""


@define
class Trace:
    """``span_id``: of our span for the request; ``parent_id``: the client's, None where it began no trace.

    Ids are numbers of 128 and 64 bits.
    """

    trace_id: int
    span_id: int
    parent_id: int | None = None
    sampled: bool = True
    """Whether the client's trace is recorded; one that begins here is."""
    state: str = ""
    """The client's ``tracestate``, handed on as it is."""
    attempts: list[tuple[str, int]] = field(factory=list)
    """Each target that was asked, in order, with the id of the span for it."""
