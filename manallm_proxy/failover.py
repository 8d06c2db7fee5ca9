"""Walk a chain until one target serves. Written once, for every endpoint, streamed or not.

For each target in order:

1. Not worth trying now (`health` says why): note it, next.
2. Attempt it. An answer: done.
3. A failure that is the provider's, or one that ``fallback_on`` lists: blame it, note it, next.
4. Any other failure is the caller's to hear: it ends the walk and blames nobody.
5. Anything else (the client left, a bug) ends the walk too, and the trial's place is free again.

No target left: `NoProvider`, which tells entry by entry why.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from attrs import define, field, frozen

from manallm_proxy.board import Board
from manallm_proxy.chain import Chain, Entry
from manallm_proxy.errors import KeyRejected, ProviderError, ProxyError
from manallm_proxy.events import AttemptFailed, FellBack, KeyWasRejected
from manallm_proxy.health import Permit, Skip

T = TypeVar("T")

RETRY_AFTER_LONGEST = 60.0
"""Seconds. Some SDKs sleep whatever they are told (wire.md A.3)."""


@frozen
class Attempt:
    """One line of the attempt log. ``duration`` in seconds, None for a target that was skipped."""

    model: str
    reason: str
    status: int | None = None
    detail: str | None = None
    duration: float | None = None

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
        said = ": ".join(part for part in (self.reason, self.detail) if part)
        return f"{self.model} ({said})"


class NoProvider(ProxyError):
    """Every target of the chain was skipped or failed."""

    status = 503
    type = "no_healthy_provider"
    code = "no_healthy_provider"

    def __init__(self, asked: str, attempts: list[Attempt], again_in: float | None) -> None:
        """`again_in`: seconds until the first target may be tried again; None: never, as configured."""
        why = ", ".join(map(str, attempts))
        wait = RETRY_AFTER_LONGEST if again_in is None else min(max(again_in, 1.0), RETRY_AFTER_LONGEST)
        super().__init__(f"no provider could serve {asked}: {why}", param="model", retry_after=wait)
        self.attempts = attempts
        self.worth_retrying = again_in is not None and again_in <= RETRY_AFTER_LONGEST


@define  # not frozen: as `events.RequestEnded`
class Served(Generic[T]):
    """What the walk ended with. ``permit`` is still open: whoever relays the answer says how it ended."""

    entry: Entry
    permit: Permit
    value: T


@define
class Walk:
    """One request's way along its chain. ``log`` can be read at any time, also when the walk was left."""

    chain: Chain
    board: Board
    request_id: str
    log: list[Attempt] = field(factory=list)
    tried: int = 0
    _passed: list[tuple[str, str, bool]] = field(factory=list)
    """Targets passed since the last attempt: name, reason, whether only ``fallback_on`` let us pass."""

    async def run(self, attempt: Callable[[Entry], Awaitable[T]], asked: str) -> Served[T]:
        """The first answer along the chain. `asked` is what the request called it, for the message."""
        for entry in self.chain:
            # 1
            verdict = self.board.admit(entry.target)
            if isinstance(verdict, Skip):
                self._pass(Attempt(str(entry.target), verdict.reason))
                continue
            # 2
            self._tell_fallback(entry)
            started = self.board.clock()
            self.tried += 1
            try:
                value = await attempt(entry)
            except ProviderError as error:
                self._failed(entry, verdict, error, started)
            except BaseException:  # 5
                verdict.released()
                raise
            else:
                return Served(entry, verdict, value)
        raise NoProvider(asked, self.log, self.board.again_in(e.target for e in self.chain))

    def _failed(self, entry: Entry, permit: Permit, error: ProviderError, started: float) -> None:
        target = entry.target
        error.target = str(target)
        duration = self.board.clock() - started
        self.board.observe(
            AttemptFailed(self.request_id, target.provider, target.model, error.error_type, error.detail, duration)
        )
        if isinstance(error, KeyRejected):
            self.board.observe(KeyWasRejected(target.provider, error.provider_status))
        widened = not error.retryable and is_widened(error, entry)
        # 4
        if not (error.retryable or widened):
            permit.released()
            raise error
        # 3
        self.board.failed(target, permit, error)
        line = Attempt(str(target), error.error_type, error.provider_status, error.detail, duration)
        self._pass(line, widened=widened)

    def _pass(self, line: Attempt, *, widened: bool = False) -> None:
        self.log.append(line)
        self._passed.append((line.model, line.reason, widened))

    def _tell_fallback(self, to: Entry) -> None:
        for model, reason, widened in self._passed:
            self.board.observe(FellBack(self.request_id, model, str(to.target), reason, widened))
        self._passed.clear()


def is_widened(error: ProviderError, entry: Entry) -> bool:
    """Whether the operator lets the walk move on from an error that is not the provider's failure."""
    if not entry.fallback_on:
        return False
    return error.widened_by in entry.fallback_on or str(error.provider_status) in entry.fallback_on
