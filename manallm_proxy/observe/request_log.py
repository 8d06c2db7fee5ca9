"""The last requests and their attempts, in bounded memory. Never a prompt, never an answer.

A request costs one append: the event itself is stored, and becomes JSON only when it is read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from attrs import evolve, field

from manallm_proxy.contract.attempts import AttemptRecord
from manallm_proxy.contract.events import UNROUTED, Event, RequestEnded
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import MODEL_LIMIT

KEPT: Final = 1000
"""Max requests stored."""


@define(eq=False)
class RequestLog:
    """An observer. ``clock``: seconds since the epoch."""

    clock: Callable[[], float] = time.time
    _kept: deque[tuple[float, RequestEnded]] = field(factory=lambda: deque(maxlen=KEPT), repr=False)

    def __call__(self, event: Event) -> None:
        if type(event) is RequestEnded and is_for_a_model(event):
            if len(event.requested) > MODEL_LIMIT:  # a name may be as long as a body
                event = evolve(event, requested=event.requested[:MODEL_LIMIT])
            self._kept.append((self.clock(), event))

    def rows(self) -> list[dict[str, Any]]:
        """All stored requests, newest first, each with its attempts. To be called in a thread: it may take 10 ms."""
        return [_whole(at, event) for at, event in reversed(tuple(self._kept))]

    def find(self, request_id: str) -> dict[str, Any] | None:
        """The newest request with this id, which a client may have used twice."""
        return next((_whole(at, event) for at, event in reversed(self._kept) if event.request_id == request_id), None)


def is_for_a_model(event: RequestEnded) -> bool:
    """Whether it was a request to a door. Others have no target, and a port scan would evict those that have."""
    return event.endpoint != UNROUTED and not event.endpoint.startswith("/")


def legible(text: str) -> str:
    """A name from a client in a form that can be shown: bounded, and without lone surrogates."""
    return text[:MODEL_LIMIT].encode("utf-8", "replace").decode()


def target_of(event: RequestEnded) -> str | None:
    """The target that answered, or whose failure was reported to the client."""
    return f"{event.provider}/{event.model}" if event.provider is not None else None


def _whole(ended_at: float, event: RequestEnded) -> dict[str, Any]:
    return {**summary(ended_at, event), "attempts": _attempts(event)}


def summary(ended_at: float, event: RequestEnded) -> dict[str, Any]:
    """One request, without its attempts. ``passed``: targets that were skipped or failed before the last one."""
    began = datetime.fromtimestamp(ended_at - event.duration, UTC)
    return {
        "id": event.request_id,
        "time": began.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "door": event.endpoint,
        "model": legible(event.requested),
        "alias": event.alias,
        "target": target_of(event),
        "outcome": event.outcome,
        "status": event.status,
        "error": event.error,
        "key": event.key,
        "stream": event.streaming,
        "ms": _ms(event.duration),
        "first_byte_ms": _ms(event.to_first_byte),
        "tokens": {"prompt": event.prompt_tokens, "completion": event.completion_tokens},
        "passed": len(event.log),
        "cache": event.cache,
        "cost_usd": None if event.cost is None else round(event.cost, 9),
        "avoided_usd": round(event.avoided, 9),
    }


def _attempts(event: RequestEnded) -> list[dict[str, Any]]:
    """The attempts that the walk moved on from, then the one at which it ended."""
    lines = [_attempt(line, event.started) for line in event.log]
    if event.last is not None and event.last_at is not None:
        ends = event.started + event.duration
        served = event.outcome == "ok" or (event.outcome == "client_gone" and event.to_first_byte is not None)
        reason = None if served else event.error or event.outcome
        last = {"model": str(event.last), "reason": reason, "detail": None}
        lines.append({**last, "at_ms": _ms(event.last_at - event.started), "ms": _ms(ends - event.last_at)})
    return lines


def _attempt(line: AttemptRecord, started: float) -> dict[str, Any]:
    return {
        "model": line.model,
        "reason": line.reason,
        "detail": line.detail,
        "at_ms": _ms(line.at - started if line.at is not None else 0.0),
        "ms": _ms(line.duration),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
