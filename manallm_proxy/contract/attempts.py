"""The attempt log of one request, and the error that holds it if every target was skipped or failed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from manallm_proxy.contract.errors import BudgetExceeded, ProxyError
from manallm_proxy.contract.records import frozen

RETRY_AFTER_LONGEST: Final = 60.0
"""Max seconds in ``Retry-After``: openai-node 6 sleeps for as long as that says."""
WORTH_A_RETRY: Final = 5.0
"""Up to so many seconds until a retry, SDKs are asked to make it; longer, their user would wait without a word."""


@frozen
class AttemptRecord:
    """One line of the attempt log. ``duration`` in seconds, None for a target that was skipped; ``at`` is monotonic."""

    model: str
    reason: str
    status: int | None = None
    detail: str | None = None
    duration: float | None = None
    at: float | None = None
    again_at: float | None = None
    """When it may be tried again, in monotonic seconds, if that was known when it was skipped."""

    def to_json(self) -> dict[str, Any]:
        line: dict[str, Any] = {"model": self.model, "reason": self.reason}
        if self.status is not None:
            line["status"] = self.status
        if self.detail:
            line["detail"] = self.detail
        if self.duration is not None:
            line["duration_ms"] = round(self.duration * 1000)
        return line

    def __str__(self) -> str:
        why = ": ".join(part for part in (self.reason, self.detail) if part)
        return f"{self.model} ({why})"


class NoProvider(ProxyError):
    """Every target of the chain was skipped or failed."""

    status = 503
    type = "no_healthy_provider"
    code = "no_healthy_provider"

    def __init__(self, asked: str, attempts: Sequence[AttemptRecord], again_in: float | None) -> None:
        """`again_in`: seconds until some target may be tried again; None or infinity: not with this configuration."""
        why = ", ".join(map(str, attempts))
        wait = RETRY_AFTER_LONGEST if again_in is None else min(max(again_in, 1.0), RETRY_AFTER_LONGEST)
        when = ""
        if again_in is not None and WORTH_A_RETRY < again_in < math.inf:  # clients show no header
            when = f"; try again in {math.ceil(again_in)} s"
        super().__init__(f"no provider could serve {asked}: {why}{when}", param="model", retry_after=wait)
        self.attempts = attempts
        self.worth_retrying = again_in is not None and again_in <= WORTH_A_RETRY


class TargetRateLimited(NoProvider):
    """The one target that the request names is rate limited by its provider: 429, which SDKs handle."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limited"


class PromptTooLong(NoProvider):
    """The prompt is longer than the window of every target: the caller's mistake, in the form that providers use."""

    status = 400
    type = "invalid_request_error"
    code = "context_length_exceeded"

    def __init__(self, asked: str, attempts: Sequence[AttemptRecord], again_in: float | None) -> None:
        super().__init__(asked, attempts, again_in)
        why = ", ".join(map(str, attempts))
        self.message, self.param, self.retry_after = f"the prompt is too long for {asked}: {why}", "messages", None
        self.worth_retrying = False


class BudgetExhausted(NoProvider, BudgetExceeded):
    """Every target costs more than the budget of the key or the alias leaves."""

    status = BudgetExceeded.status
    type = BudgetExceeded.type
    code = BudgetExceeded.code

    def __init__(self, asked: str, attempts: Sequence[AttemptRecord], again_in: float | None) -> None:
        super().__init__(asked, attempts, None)  # the budget's period ends far later than a target's rest
        self.retry_after, self.worth_retrying = RETRY_AFTER_LONGEST, False


class LocalUnavailable(NoProvider):
    """The request must stay on the operator's own hardware, and nothing there could serve it."""

    code = "local_unavailable"

    def __init__(self, asked: str, attempts: Sequence[AttemptRecord], again_in: float | None) -> None:
        super().__init__(asked, attempts, again_in)
        self.message += "; it has to stay at providers with 'local: true'"


def exhausted(
    asked: str,
    attempts: Sequence[AttemptRecord],
    again_in: float | None,
    *,
    names_target: bool,
    local_only: bool = False,
) -> NoProvider:
    """The error for a walk in which no target answered. `names_target`: the request named one target and no alias."""
    if attempts and all(attempt.reason == "too_long" for attempt in attempts):
        return PromptTooLong(asked, attempts, again_in)
    if attempts and all(attempt.reason == "budget" for attempt in attempts):
        return BudgetExhausted(asked, attempts, again_in)
    if local_only:
        return LocalUnavailable(asked, attempts, again_in)
    limited = names_target and bool(attempts) and "rate_limited" in (attempts[-1].reason, attempts[-1].detail)
    return (TargetRateLimited if limited else NoProvider)(asked, attempts, again_in)
