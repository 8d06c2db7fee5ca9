"""Events that the core reports. It does not know its observers (`metrics`, `log`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.attempts import AttemptRecord
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.targets import Target
from manallm_proxy.contract.trace import Trace

UNROUTED: Final = "other"
"""The ``endpoint`` of requests that match no route."""
Status = Literal["healthy", "degraded", "unhealthy", "cooling", "unconfigured"]
"""Health of a provider or a target."""
Outcome = Literal["ok", "error", "client_gone", "broken"]
CacheOutcome = Literal["hit", "miss", "bypass"]
"""hit: a kept answer, or one that another request is waiting for already. miss: a provider was asked. bypass: the
request does not allow its answer to be kept."""


@frozen
class AttemptFailed:
    """One attempt at one target failed. ``reason``: see `provider_errors.ProviderError`; ``duration`` in seconds.

    ``provider_message``: the provider's own words, without keys and without anything that the request held.
    """

    request_id: str
    provider: str
    model: str
    reason: str
    detail: str | None
    duration: float
    provider_message: str | None = None


@frozen
class FellBack:
    """The walk moved on from one target to the next that it tries.

    ``widened``: only ``fallback_on`` allowed it, which an operator wants to see each time.
    """

    request_id: str
    from_target: str
    to_target: str
    reason: str
    widened: bool = False


@frozen
class ModelChosen:
    """An open entry (``ollama/*``) of an alias serves another model than before; ``model`` None: nothing fits now."""

    alias: str
    entry: str
    model: str | None
    was: str | None
    needs: tuple[str, ...] = ()
    """The capabilities that the request wanted."""
    reason: str | None = None
    """Why nothing fits."""


@frozen
class KeyWasRejected:
    """A provider rejected our key: an alarm, since only the operator can fix it."""

    provider: str
    status: int | None


@frozen
class HealthChanged:
    """The health of a provider (``model`` None) or of one of its targets changed from ``was`` to ``now``."""

    provider: str
    model: str | None
    was: Status
    now: Status
    reason: str | None
    detail: str | None = None
    """Why the provider could not be reached, such as ``refused``, if that is the reason and this process saw it."""


@frozen
class RequestBegun:
    """A request has found its chain. Reported only while somebody follows requests live."""

    request_id: str
    requested: str
    """As `RequestEnded.requested`."""
    alias: str | None


@frozen
class RequestCommitted:
    """A target answers the request. Reported only while somebody follows requests live."""

    request_id: str
    requested: str
    alias: str | None
    target: Target


@define  # not frozen, which takes twice as long to make: 60 ns a field, and there is one a request
class RequestEnded:
    """One request is over. Times in seconds; ``provider`` and ``model`` None if none answered."""

    request_id: str
    endpoint: str
    requested: str
    """The model's name as the client sent it: untrusted, to be truncated and escaped."""
    alias: str | None
    provider: str | None
    model: str | None
    streaming: bool
    status: int
    outcome: Outcome
    attempts: int
    bytes_sent: int
    duration: float
    to_first_byte: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    error: str | None = None
    """The error's type or reason, never its message."""
    key: str | None = None
    """The name of the client's key in the configuration, if one is required."""
    notes: tuple[str, ...] = ()
    """See `provider.Call`."""
    started: float = 0.0
    """Monotonic, as the times of ``log``."""
    log: Sequence[AttemptRecord] = ()
    """Attempt log: targets that were skipped or failed before the last one was asked."""
    last: Target | None = None
    """The last attempt, if the walk did not move on from it: its failure ended the request."""
    last_at: float | None = None
    cost: float | None = None
    """USD, where the price of what answered is known."""
    avoided: float = 0.0
    """USD that the alias's next paid entry would have cost, if a local one answered."""
    cache: CacheOutcome | None = None
    """None if the chain keeps no answers."""
    saved_usage: Usage | None = None
    """Tokens that a cache hit saved."""
    saved_cost: float = 0.0
    """The same in USD."""
    trace: Trace | None = None
    """None where traces are off."""
    more: bool = False
    """Whether another of the same turn of the event loop is reported right after it, so that both can be written at
    once."""

    @classmethod
    def refused(cls, error: ProxyError, request_id: str, route: str = UNROUTED, key: str | None = None) -> RequestEnded:
        """A request that did not reach the pipeline. `route`: ours, never the client's spelling of it."""
        return cls(
            request_id=request_id,
            endpoint=route,
            requested="",
            alias=None,
            provider=None,
            model=None,
            streaming=False,
            status=error.status,
            outcome="error",
            attempts=0,
            bytes_sent=0,
            duration=0.0,
            to_first_byte=None,
            prompt_tokens=None,
            completion_tokens=None,
            error=error.code or error.type,
            key=key,
        )


LoadEvent = Literal["begun", "finished", "failed", "aborted"]


@frozen
class ModelLoad:
    """The load of a model began or ended. ``duration`` in seconds, once it has ended.

    ``again``: its last load failed too, so this need not be logged as news.
    """

    provider: str
    model: str
    event: LoadEvent
    duration: float | None = None
    detail: str | None = None
    again: bool = False


@frozen
class PartialOffload:
    """A loaded model is only partly on the GPU, which slows all of it down. Sizes in bytes."""

    provider: str
    model: str
    size: int
    size_vram: int


@frozen
class ResidentsUnreadable:
    """A local server does not report which models it has loaded: it is treated like any other provider."""

    provider: str
    detail: str | None


@frozen
class StateChanged:
    """A server that requests do without failed, or works again. ``server``: its URL without a password."""

    server: str
    is_well: bool
    detail: str | None = None
    of: Literal["shared state", "traces"] = "shared state"


@frozen
class Reloaded:
    """A reload (SIGHUP) has ended. ``mistakes`` empty: the new configuration is in use."""

    mistakes: tuple[str, ...] = ()
    changes: str = ""
    """What is new in it, in words."""


@frozen
class TlsNotVerified:
    """A provider's TLS certificate is not verified (``verify_tls: false``): traffic can be intercepted."""

    provider: str


@frozen
class ListUnreadable:
    """A provider's model list cannot be read, or only in part: no request can be refused by what it lacks."""

    provider: str
    detail: str


@frozen
class UsageRefused:
    """A target refuses ``stream_options``: the tokens of its streams are counted only if it reports them unasked."""

    provider: str
    model: str


@frozen
class DimensionsDiffer:
    """Two targets of one alias gave embeddings of different length: the operator's mistake."""

    alias: str
    first: str
    first_length: int
    second: str
    second_length: int


@frozen
class SpendFileFailed:
    """The file that records spending cannot be read or written: after a restart, budgets start from zero."""

    path: str
    detail: str


@frozen
class LifecycleChanged:
    """The process started, is draining or stopped. ``worker``: its number, if there are several."""

    what: Literal["started", "draining", "stopped"]
    detail: str = ""
    worker: int | None = None


@frozen
class WorkerEnded:
    """One of several workers ended unexpectedly.

    ``again_in``: seconds until another replaces it; None if all are to stop.
    """

    worker: int
    pid: int | None
    how: str
    again_in: float | None


@frozen
class Crashed:
    """A bug in the proxy, in handling one request or in the background. The traceback belongs in the log only."""

    where: str
    error: BaseException
    request_id: str | None = None


@frozen
class LoopReported:
    """The event loop reported a problem without an exception, such as a task destroyed while it was pending.

    ``message``: only if it is a constant of a library, else None. ``sources``: the types of the objects concerned.
    """

    message: str | None
    sources: tuple[str, ...] = ()


Event = (
    AttemptFailed
    | FellBack
    | ModelChosen
    | KeyWasRejected
    | HealthChanged
    | RequestBegun
    | RequestCommitted
    | RequestEnded
    | ModelLoad
    | PartialOffload
    | ResidentsUnreadable
    | StateChanged
    | Reloaded
    | TlsNotVerified
    | ListUnreadable
    | UsageRefused
    | DimensionsDiffer
    | SpendFileFailed
    | LifecycleChanged
    | WorkerEnded
    | Crashed
    | LoopReported
)
Observer = Callable[[Event], None]
