"""Reads W3C Trace Context from a request and makes the headers for providers (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import random
import re
from typing import Final

from multidict import CIMultiDictProxy

from manallm_proxy.contract.targets import Target
from manallm_proxy.contract.trace import Trace, TraceHeaders

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE: Final = re.compile(r"[\x20-\x7e]{1,512}")
"""Longer values may be dropped (section 3.3.1.5)."""
_SAMPLED: Final = 1


def start_trace(headers: CIMultiDictProxy[str]) -> Trace:
    """Continues the client's trace; starts a new one if ``traceparent`` is missing or invalid."""
    given = headers.getall("traceparent", ())
    match = _PARENT.fullmatch(given[0].strip()) if len(given) == 1 else None
    span = random.getrandbits(64) or 1
    if (
        match is None
        or match[1] == "ff"
        or (match[1] == "00" and match[5])
        or not int(match[2], 16)
        or not int(match[3], 16)
    ):
        return Trace(random.getrandbits(128) or 1, span)
    state = ",".join(headers.getall("tracestate", ()))
    return Trace(
        int(match[2], 16),
        span,
        int(match[3], 16),
        bool(int(match[4], 16) & _SAMPLED),
        state if _STATE.fullmatch(state) else "",
    )


def headers_for(trace: Trace, target: Target) -> TraceHeaders:
    """Headers for one attempt, which becomes the provider's parent span. Appends the attempt to `trace`."""
    span = random.getrandbits(64) or 1
    trace.attempts.append((str(target), span))
    headers = {"traceparent": f"00-{trace.trace_id:032x}-{span:016x}-{trace.sampled:02x}"}
    return headers | {"tracestate": trace.state} if trace.state else headers
