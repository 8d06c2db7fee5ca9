"""Facts in words: the level, the name and the fields of each one's log line. Never keys, never prompts."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any, Final, Literal, assert_never

import attrs

from manallm_proxy.contract.events import (
    AttemptFailed,
    Crashed,
    DimensionsDiffer,
    Event,
    FellBack,
    HealthChanged,
    KeyWasRejected,
    LifeChanged,
    NotVerified,
    Reloaded,
    RequestEnded,
    WorkerEnded,
)

Level = Literal["debug", "info", "warning", "error"]
FRAMES_LIMIT: Final = 40
REQUEST: Final = "request"
"""The event that a request's line is named by."""


def line_of(event: Event) -> tuple[Level, str, dict[str, Any]]:
    """Level, name and fields of one fact."""
    match event:
        case RequestEnded():
            return _request_level(event), REQUEST, _request(event)
        case AttemptFailed():
            fields = attrs.asdict(event)
            fields["duration_ms"] = _ms(fields.pop("duration"))
            return "info", "attempt failed", fields
        case FellBack():
            return "warning" if event.widened else "debug", "fell back", attrs.asdict(event)
        case KeyWasRejected():
            todo = f"check the api_key of provider '{event.provider}' and reload"
            return "error", "provider key rejected", {**attrs.asdict(event), "todo": todo}
        case HealthChanged():
            level: Level = "warning" if event.now == "unhealthy" else "info"
            return level, "health", attrs.asdict(event)
        case Reloaded():
            if event.mistakes:
                return "error", "reload refused, the old configuration serves on", {"mistakes": event.mistakes}
            return "info", "reloaded", {}
        case NotVerified():
            return "warning", "certificates are not verified", attrs.asdict(event)
        case DimensionsDiffer():
            return "warning", "embedding dimensions differ within one alias", attrs.asdict(event)
        case LifeChanged():
            return "info", event.what, {"worker": event.worker, "detail": event.detail or None}
        case WorkerEnded():
            return "error", "worker ended", attrs.asdict(event)
        case Crashed():
            # no exception's own words: they may hold what a client sent; types and frames find the bug
            fields = {"where": event.where, "request_id": event.request_id, "exception": kind(event.error)}
            fields |= {"frames": frames(event.error), "behind_it": tuple(_behind(event.error)) or None}
            return "error", "internal error", fields
        case _:
            assert_never(event)


def kind(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def frames(error: BaseException) -> tuple[str, ...]:
    """Where it was raised, the outermost first, without source lines: nothing is read from disk here."""
    frames = [
        f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    if len(frames) > FRAMES_LIMIT:
        half = FRAMES_LIMIT // 2
        frames[half:-half] = [f"{len(frames) - 2 * half} more"]
    return tuple(frames)


def _behind(error: BaseException) -> Iterator[str]:
    """Its causes, and what a group holds: type and innermost frame of each, a few of them."""
    seen = [error]
    for each in seen:
        inside = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        for other in (each.__cause__ or each.__context__, *inside):
            if other is not None and len(seen) <= 8 and not any(other is one for one in seen):
                seen.append(other)
                yield " at ".join((kind(other), *frames(other)[-1:]))


def _request_level(event: RequestEnded) -> Level:
    if event.outcome == "broken" or (event.outcome == "error" and event.status >= 500):
        return "warning"
    return "info"


def _request(event: RequestEnded) -> dict[str, Any]:
    target = f"{event.provider}/{event.model}" if event.provider is not None else None
    return {
        "request_id": event.request_id,
        "endpoint": event.endpoint,
        "key": event.key,
        "requested": event.requested or None,
        "target": target,
        "status": event.status,
        "outcome": event.outcome,
        "error": event.error,
        "notes": event.notes or None,
        "attempts": event.attempts,
        "stream": event.streaming,
        "bytes": event.bytes_sent,
        "first_byte_ms": _ms(event.to_first_byte),
        "ms": _ms(event.duration),
        "prompt_tokens": event.prompt_tokens,
        "completion_tokens": event.completion_tokens,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
