"""What can go wrong in one attempt at one target, and what follows from it.

In addition to what the caller reads, each error knows

* whether the next target of the chain may be tried: ``retryable``, or ``widened_by`` for operators who list that
  class under ``fallback_on``;
* what it blames: ``blame``, read by `health`.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar, Final

from manallm_proxy.contract.errors import ProxyError


class Blame(Enum):
    """What a failed attempt counts against. `health` has the rules."""

    NOBODY = "nobody"
    """The caller's mistake, or ours to fix: health does not change."""
    REACH = "reach"
    """The provider: connecting to it failed, which a probe detects as well."""
    TARGET = "target"
    """The target, in a way that only requests detect: 5xx, timeouts, broken answers. Two such targets open the
    provider's circuit."""
    MODEL = "model"
    """The target alone: the provider does not have this model."""
    LOAD = "load"
    """Busy or rate limited: the target cools for a while, which does not count as a failure."""


class ProviderError(ProxyError):
    """One failed attempt at one target.

    ``reason`` is one of a closed list of words; ``detail`` says more, and is safe to show; ``provider_status`` is the
    HTTP status, if the provider sent one.
    """

    source = "provider"
    status = 502
    type = "provider_error"
    code = "provider_error"
    retryable: ClassVar[bool] = False
    blame: ClassVar[Blame] = Blame.NOBODY
    reason: ClassVar[str] = "provider_error"
    widened_by: ClassVar[str | None] = None
    """The class under ``fallback_on`` that lets the walk move on from this error."""

    def __init__(
        self,
        message: str,
        *,
        detail: str | None = None,
        provider_status: int | None = None,
        retry_after: float | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)
        self.detail = detail
        self.provider_status = provider_status
        self.target: str | None = None
        """``provider/model``, set by the walk."""
        self.raw_message = ""
        """The provider's own words for a failure of its own. They may quote the request: never show them."""
        self.provider_message: str | None = None
        """The same without what the request held, for the log."""
        self.usage: Any = None
        """`answers.Usage` of a failed attempt, if the provider reported it: it is billed all the same."""

    @property
    def error_type(self) -> str:
        """The reason as metrics and attempt log show it: one of a bounded set, whatever a provider sends."""
        return self.reason


UNKNOWN_HOST: Final = "dns"
NO_TLS: Final = "tls: handshake failed"
NOT_TRUSTED: Final = "tls: "
"""Details of `ConnectFailed` whose mend is another than for a server that is down; the last one goes on with why."""


class ConnectFailed(ProviderError):
    """Connection refused, host unreachable, unknown host name, or TLS failure."""

    retryable, blame, reason = True, Blame.REACH, "connect_error"


class ResourcesExhausted(ProviderError):
    """The proxy lacks what a connection needs: descriptors, buffers, ports. Any other target would fail as well."""

    source = "manallm-proxy"
    status = 503
    type = "overloaded_error"
    code = "overloaded"
    reason = "connect_error"


class ConnectTimeout(ProviderError):
    """No connection within ``timeouts.connect``: the host is down, or a firewall drops packets."""

    status = 504
    retryable, blame, reason = True, Blame.REACH, "connect_timeout"


class ProbeTimeout(ConnectTimeout):
    """Connected, but a probe got no answer in time: the server is stuck, or slow to list its models."""


class FirstByteTimeout(ProviderError):
    """Connected, but no event with content within ``timeouts.first_byte``."""

    status = 504
    retryable, blame, reason = True, Blame.TARGET, "first_byte_timeout"


class ChainTimeout(ProviderError):
    """The walk ran out of its ``chain_timeout``. That limit is the operator's, so the target is not blamed."""

    status = 504
    retryable, reason = True, "chain_timeout"


class ReadTimeout(ProviderError):
    """The answer began and then fell silent for ``timeouts.idle``."""

    status = 504
    retryable, blame, reason = True, Blame.TARGET, "read_timeout"


class LoadTimeout(ProviderError):
    """The model was cold, and its load took longer than the load timeout. The load goes on without this request."""

    status = 504
    retryable, blame, reason = True, Blame.NOBODY, "loading"


class QueueTimeout(ProviderError):
    """The request waited ``max_wait`` for its turn at a local server, and was not sent."""

    status = 503
    retryable, blame, reason = True, Blame.NOBODY, "saturated"


class LoadFailed(ProviderError):
    """The server could not load the model. The back-off of loads applies (`residency`); health does not change."""

    status = 502
    retryable, blame, reason = True, Blame.NOBODY, "load_failed"


class Disconnected(ProviderError):
    """The provider closed or reset the connection before its answer was complete."""

    retryable, blame, reason = True, Blame.TARGET, "disconnected"


class BadResponse(ProviderError):
    """The response is not an answer: malformed HTTP, HTML, broken JSON, a redirect."""

    retryable, blame, reason = True, Blame.TARGET, "bad_response"


class ServerFailed(ProviderError):
    """5xx: a gateway whose server is down, or a server that fails. 500 is `ModelFailed`."""

    retryable, blame, reason = True, Blame.TARGET, "http_5xx"


class ModelFailed(ServerFailed):
    """500: mostly a failure of one model (its runner crashed, it called an undeclared tool)."""


class FarFailed(ServerFailed):
    """5xx for a request that says that it has passed many proxies: the end of a circle, or what a client made up."""

    blame = Blame.NOBODY

    @classmethod
    def of(cls, error: ServerFailed) -> FarFailed:
        failed = cls(
            error.message, detail=error.detail, provider_status=error.provider_status, retry_after=error.retry_after
        )
        failed.provider_message, failed.usage = error.provider_message, error.usage
        return failed


class ServerBusy(ProviderError):
    """5xx that says "busy" or "loading": the target cools."""

    status = 503
    retryable, blame, reason = True, Blame.LOAD, "http_5xx"


class RateLimited(ProviderError):
    """429. ``retry_after`` is what the provider reported, in whichever form."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limited"
    retryable, blame, reason = True, Blame.LOAD, "rate_limited"


class RetryableStatus(ProviderError):
    """A status listed in ``extra_retryable_statuses`` (default: 408 and 498): the next target is tried."""

    status = 503
    retryable, blame = True, Blame.LOAD
    reason = "http_408"

    @property
    def error_type(self) -> str:
        return f"http_{self.provider_status}"


class RequestRejected(ProviderError):
    """The caller's mistake, with the provider's own message, type, code and status.

    `status`: replaces a status of the provider's that would mislead, such as a local server's 500 for a bad schema.
    """

    type = "invalid_request_error"
    reason = "http_4xx"

    def __init__(
        self,
        message: str,
        *,
        provider_status: int,
        status: int | None = None,
        provider_type: str | None = None,
        provider_code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, provider_status=provider_status, param=param, retry_after=retry_after)
        self.status = status or provider_status
        self.type = provider_type or type(self).type
        self.code = provider_code or type(self).code

    @property
    def error_type(self) -> str:
        return f"http_{self.status}"


class ContextTooLong(RequestRejected):
    """The prompt does not fit the model: 400, whatever the provider's status."""

    code = "context_length_exceeded"
    widened_by = "context_length"

    def __init__(self, message: str, *, provider_status: int = 400, param: str | None = None) -> None:
        super().__init__(message, provider_status=provider_status, status=400, param=param)


class MissingModel(RequestRejected):
    """The provider does not have this model. Returned to the caller; blames the target only if the walk moves on."""

    code = "model_not_found"
    blame = Blame.MODEL
    widened_by = "missing_model"


class PaymentRequired(RequestRejected):
    """402: our account with the provider is empty."""

    type = "billing_error"
    code = "payment_required"
    widened_by = "payment"


class Unsupported(ProviderError):
    """The target lacks a capability that the request needs, according to its model list or its refusal."""

    status = 400
    type = "invalid_request_error"
    code = "unsupported_capability"
    reason = "unsupported_capability"
    widened_by = "capability"


class ContentBlocked(ProviderError):
    """The provider's filter refused the prompt or the answer."""

    status = 400
    type = "invalid_request_error"
    code = "content_filter"
    reason = "content_filter"


class KeyRejected(ProviderError):
    """The provider rejected our key, not the client's: 502, so that no client asks its user for a new one."""

    status = 502
    type = "provider_auth_error"
    code = "provider_key_rejected"
    reason = "provider_auth_error"
    widened_by = "auth"


class ProxyRefused(ProviderError):
    """The forward proxy rejected its password (407): only the operator can fix it."""

    status = 502
    type = "provider_auth_error"
    code = "proxy_authentication_required"
    reason = "provider_auth_error"
    widened_by = "auth"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: its forward proxy wants credentials; set them in `proxy`", detail="407 of its proxy")


def too_many_items(most: int) -> BadResponse:
    """For an answer of more than `most` choices, images, calls, blocks or output items."""
    return BadResponse(f"its answer has more than {most} items (answers.items)", detail="too much (answers.items)")


class EmptyAnswer(ProviderError):
    """A stream ended without content: that is an answer, unless ``empty`` is listed under ``fallback_on``."""

    reason = "empty_answer"
    widened_by = "empty"


class StreamInterrupted(ProviderError):
    """A committed stream broke. Reported in-band; never retried or continued by another target."""

    code = "stream_interrupted"
    reason = "disconnected"
    blame = Blame.TARGET
