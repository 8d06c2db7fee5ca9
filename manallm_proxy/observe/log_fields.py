"""Level, name and fields of each event's log line. Never keys, never prompts."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, assert_never

import attrs
import msgspec

from manallm_proxy.contract.events import (
    AttemptFailed,
    Crashed,
    DimensionsDiffer,
    Event,
    FellBack,
    HealthChanged,
    KeyWasRejected,
    LifecycleChanged,
    ListUnreadable,
    LoopReported,
    ModelChosen,
    ModelLoad,
    PartialOffload,
    Reloaded,
    RequestBegun,
    RequestCommitted,
    RequestEnded,
    ResidentsUnreadable,
    SpendFileFailed,
    StateChanged,
    TlsNotVerified,
    UsageRefused,
    WorkerEnded,
)

Level = Literal["debug", "info", "warning", "error"]
FRAMES_LIMIT: Final = 40
REQUEST: Final = "request"
"""The ``event`` of the line that each request gets."""


def line_of(event: Event) -> tuple[Level, str, dict[str, Any]]:
    """Level, name and fields of `event`."""
    match event:
        case RequestEnded():
            return request_level(event), REQUEST, request_line(event).fields()
        case AttemptFailed():
            fields = attrs.asdict(event)
            fields["duration_ms"] = _ms(fields.pop("duration"))
            return "info", "attempt failed", fields
        case FellBack():
            return "warning" if event.widened else "debug", "fell back", attrs.asdict(event)
        case ModelChosen():
            name = "model chosen" if event.model is not None else "no model to choose"
            return "info", name, {**attrs.asdict(event), "needs": event.needs or None}
        case KeyWasRejected():
            when = "a reload reads api_key_file, a restart its variable"
            advice = f"check the api_key of provider '{event.provider}': {when}"
            return "error", "provider key rejected", {**attrs.asdict(event), "todo": advice}
        case HealthChanged():
            level: Level = "warning" if event.now == "unhealthy" else "info"
            return level, "health", attrs.asdict(event)
        case Reloaded():
            if event.mistakes:
                return "error", "reload refused, the old configuration serves on", {"mistakes": event.mistakes}
            return "info", "reloaded", {"changes": event.changes or None}
        case ModelLoad():
            return _load_level(event), f"model load {event.event}", _load(event)
        case PartialOffload():
            todo = "close what else uses the GPU, or give num_ctx or the model a size that fits"
            return "warning", "model is half on the CPU", {**attrs.asdict(event), "todo": todo}
        case ResidentsUnreadable():
            todo = "it is asked as any other provider is: its loads are not watched"
            return "warning", "loaded models are not reported", {**attrs.asdict(event), "todo": todo}
        case StateChanged(of="traces"):
            if event.is_well:
                return "info", "traces are taken again", {"server": event.server}
            todo = "requests go on without them; a collector for OTLP over HTTP should answer there"
            return "warning", "traces are lost", {"server": event.server, "todo": todo}
        case StateChanged():
            if event.is_well:
                return "info", "shared state is back", {"server": event.server}
            todo = "requests go on without it; nothing is lost but what is kept there"
            return "warning", "shared state is away", {"server": event.server, "detail": event.detail, "todo": todo}
        case TlsNotVerified():
            return "warning", "certificates are not verified", attrs.asdict(event)
        case DimensionsDiffer():
            return "warning", "embedding dimensions differ within one alias", attrs.asdict(event)
        case SpendFileFailed():
            todo = "until it is, budgets begin anew after a restart"
            return "warning", "what was spent is not kept", {**attrs.asdict(event), "todo": todo}
        case ListUnreadable():
            return "warning", "model list not read, or not wholly", attrs.asdict(event)
        case UsageRefused():
            todo = "its streams are not counted; stream_usage: false on the provider spares it the question"
            return "warning", "stream_options refused", {**attrs.asdict(event), "todo": todo}
        case LifecycleChanged():
            return "info", event.what, {"worker": event.worker, "detail": event.detail or None}
        case WorkerEnded():
            return "error", "worker ended", attrs.asdict(event)
        case Crashed():
            # without the exception's message, which may contain a client's text; types and frames find the bug
            fields = {"where": event.where, "request_id": event.request_id, "exception": kind(event.error)}
            fields |= {"frames": frames(event.error), "causes": tuple(_causes(event.error)) or None}
            return "error", "internal error", fields
        case LoopReported():
            return "error", "event loop report", {"message": event.message, "sources": event.sources or None}
        case RequestBegun():
            return "debug", "request begun", attrs.asdict(event)
        case RequestCommitted():
            return "debug", "request committed", {**attrs.asdict(event, recurse=False), "target": str(event.target)}
        case _:
            assert_never(event)


def kind(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def frames(error: BaseException) -> tuple[str, ...]:
    """Where `error` was raised, outermost first. Without source lines, because reading them from disk would block."""
    frames = [
        f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    if len(frames) > FRAMES_LIMIT:
        half = FRAMES_LIMIT // 2
        frames[half:-half] = [f"{len(frames) - 2 * half} more"]
    return tuple(frames)


def _causes(error: BaseException) -> Iterator[str]:
    """Type and innermost frame of each cause, context and group member; the first 8 of them."""
    seen = [error]
    for each in seen:
        inside = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        for other in (each.__cause__ or each.__context__, *inside):
            if other is not None and len(seen) <= 8 and not any(other is one for one in seen):
                seen.append(other)
                yield " at ".join((kind(other), *frames(other)[-1:]))


def _load_level(event: ModelLoad) -> Level:
    return "warning" if event.event == "failed" and not event.again else "debug" if event.again else "info"


def _load(event: ModelLoad) -> dict[str, Any]:
    return {"provider": event.provider, "model": event.model, "detail": event.detail, "ms": _ms(event.duration)}


def request_level(event: RequestEnded) -> Level:
    if event.outcome == "broken" or (event.outcome == "error" and event.status >= 500):
        return "warning"
    return "info"


class RequestLine(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """The line of a request. There is one for each request, so it is made without a dict."""

    time: str = ""
    level: str = ""
    event: str = ""
    request_id: str
    endpoint: str
    key: str | None = None
    requested: str | None = None
    target: str | None = None
    status: int
    outcome: str
    error: str | None = None
    notes: Sequence[str] | None = None
    passed: Sequence[str] | None = None
    """Targets that did not serve it, and why."""
    attempts: int
    stream: bool
    bytes: int
    first_byte_ms: float | None = None
    ms: float
    prompt_tokens: Any = None
    completion_tokens: Any = None
    cost_usd: float | None = None
    cache: str | None = None
    suppressed: int | None = None
    """Number of lines about unauthenticated requests suppressed before this one."""

    def fields(self) -> dict[str, Any]:
        """Without time, level and event, which every line has."""
        return {name: getattr(self, name) for name in self.__struct_fields__[3:]}


def request_line(event: RequestEnded) -> RequestLine:
    """The line of `event`, with its texts still unescaped."""
    first = event.to_first_byte
    line = RequestLine(
        request_id=event.request_id,
        endpoint=event.endpoint,
        key=event.key,
        requested=event.requested or None,
        target=f"{event.provider}/{event.model}" if event.provider is not None else None,
        status=event.status,
        outcome=event.outcome,
        error=event.error,
        attempts=event.attempts,
        stream=event.streaming,
        bytes=event.bytes_sent,
        first_byte_ms=None if first is None else _tenths(first),
        ms=_tenths(event.duration),
        prompt_tokens=event.prompt_tokens,
        completion_tokens=event.completion_tokens,
    )
    # of more than 15 keywords Python would make a dict first
    if event.notes:
        line.notes = event.notes
    if event.log:
        line.passed = tuple(map(str, event.log))
    if event.cost is not None:
        line.cost_usd = round(event.cost, 9)
    line.cache = event.cache
    return line


def _tenths(seconds: float) -> float:
    """Milliseconds with one decimal, since `round` takes a microsecond. None and non-numbers are returned unchanged."""
    try:
        return int(seconds * 10_000 + 0.5) / 10
    except (OverflowError, ValueError):
        return math.nan


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
