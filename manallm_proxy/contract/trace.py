"""Trace context of one request (W3C Trace Context). Only created if traces are enabled."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field

from manallm_proxy.contract.records import define

TraceHeaders = Mapping[str, str]
"""Headers for a provider: ``traceparent``, and ``tracestate`` if the client sent one."""


@define
class Trace:
    """``trace_id`` has 128 bits, span ids have 64. ``parent_id``: the client's span; None if the trace begins here."""

    trace_id: int
    span_id: int
    parent_id: int | None = None
    sampled: bool = True
    """The client's sampled flag; True if the trace begins here."""
    state: str = ""
    """The client's ``tracestate``, forwarded unchanged."""
    attempts: list[tuple[str, int]] = field(factory=list)
    """Targets in the order in which they were tried, with the span id of each attempt."""
