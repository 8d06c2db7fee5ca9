"""What can go wrong in one attempt at one target, and what follows from it.

Beside what the caller reads, each error knows

* whether the next target of the chain may be tried: ``retryable``, or ``widened_by`` for operators who list that
  class under ``fallback_on``;
* whom it blames: ``blame``, read by `health`.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

from manallm_proxy.contract.errors import ProxyError


class Blame(Enum):
    """Whom a failed attempt speaks against."""

    NOBODY = "nobody"
    """The caller's mistake, or ours to mend: health is left alone."""
    REACH = "reach"
    """The provider, in a way that a probe can see as well: it could not be connected to."""
    TARGET = "target"
    """This one model, in a way that only a request shows: 5xx, timeouts, broken answers. Two accuse the provider."""
    MODEL = "model"
    """This one model, and nothing else of the provider: it does not have it."""
    LOAD = "load"
    """Busy or rate limited: it cools for a while, which is no failure."""


class ProviderError(ProxyError):
    """One failed attempt at one target.

    ``reason`` is a word of the closed list in the attempt log and in the metrics; ``detail`` a few words
    more, safe to show; ``provider_status`` the HTTP status where the provider gave one.
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
        """``provider/model``, noted by the walk."""

    @property
    def error_type(self) -> str:
        """The word for metrics and the attempt log: closed, whatever a provider sends."""
        return self.reason


class ConnectFailed(ProviderError):
    """Refused, unreachable, unknown name, TLS."""

    retryable, blame, reason = True, Blame.REACH, "connect_error"


class NothingLeftHere(ProviderError):
    """We lack what a connection takes: descriptors, buffers, ports. No other target would fare better."""

    source = "manallm-proxy"
    status = 503
    type = "overloaded_error"
    code = "overloaded"
    reason = "connect_error"


class ConnectTimeout(ProviderError):
    """No connection within ``timeouts.connect``: the box is off, or a firewall drops packets."""

    status = 504
    retryable, blame, reason = True, Blame.REACH, "connect_timeout"


class FirstByteTimeout(ProviderError):
    """Connected, and then nothing that says something within ``timeouts.first_byte``."""

    status = 504
    retryable, blame, reason = True, Blame.TARGET, "first_byte_timeout"


class ReadTimeout(ProviderError):
    """The answer began and then fell silent for ``timeouts.idle``."""

    status = 504
    retryable, blame, reason = True, Blame.TARGET, "read_timeout"


class Disconnected(ProviderError):
    """The provider closed or reset the connection before its answer was complete."""

    retryable, blame, reason = True, Blame.TARGET, "disconnected"


class BadResponse(ProviderError):
    """Something came that is not an answer: malformed HTTP, HTML, broken JSON, a redirect."""

    retryable, blame, reason = True, Blame.TARGET, "bad_response"


class ServerFailed(ProviderError):
    """5xx other than 500: a gateway without its server, or a server that fails."""

    retryable, blame, reason = True, Blame.TARGET, "http_5xx"


class ModelFailed(ServerFailed):
    """500: most often one model's trouble (its runner crashed, it called a tool that nobody declared)."""


class ServerBusy(ProviderError):
    """5xx that says "busy" or "loading": it cools."""

    status = 503
    retryable, blame, reason = True, Blame.LOAD, "http_5xx"


class RateLimited(ProviderError):
    """429. ``retry_after`` as the provider says it, in whichever of its dialects."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limited"
    retryable, blame, reason = True, Blame.LOAD, "rate_limited"


class RetryableStatus(ProviderError):
    """A status of ``extra_retryable_statuses`` (408 and 498 unless configured): try elsewhere."""

    status = 503
    retryable, blame = True, Blame.LOAD
    reason = "http_408"

    @property
    def error_type(self) -> str:
        return f"http_{self.provider_status}"


class UpstreamSaid(ProviderError):
    """The caller's mistake: the provider's own message, type, code and status.

    `status`: what the caller reads where the provider's own would mislead: a local server's 500 for a bad schema.
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


class ContextTooLong(UpstreamSaid):
    """The prompt does not fit the model: 400, whatever the provider's status."""

    code = "context_length_exceeded"
    widened_by = "context_length"

    def __init__(self, message: str, *, provider_status: int = 400, param: str | None = None) -> None:
        super().__init__(message, provider_status=provider_status, status=400, param=param)


class MissingModel(UpstreamSaid):
    """The provider does not have this model. Handed back; it blames the target only where the walk moves on."""

    code = "model_not_found"
    blame = Blame.MODEL
    widened_by = "missing_model"


class PaymentRequired(UpstreamSaid):
    """402: our account with the provider is empty."""

    type = "billing_error"
    code = "payment_required"
    widened_by = "payment"


class Unsupported(ProviderError):
    """The target lacks what the request needs, as its listing or its refusal says."""

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
    """Our key, not the client's: 502, so that no client asks its user for a new one."""

    status = 502
    type = "provider_auth_error"
    code = "provider_key_rejected"
    reason = "provider_auth_error"
    widened_by = "auth"


class ProxyRefused(ProviderError):
    """A forward proxy wants another password (407): the operator's to mend."""

    status = 502
    type = "provider_auth_error"
    code = "proxy_authentication_required"
    reason = "provider_auth_error"
    widened_by = "auth"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: its forward proxy wants credentials; set them in `proxy`", detail="407 of its proxy")


class EmptyAnswer(ProviderError):
    """A stream that ended without a word: an answer, unless ``empty`` is listed under ``fallback_on``."""

    reason = "empty_answer"
    widened_by = "empty"


class StreamInterrupted(ProviderError):
    """A committed stream broke. Told in-band; never retried, never spliced."""

    code = "stream_interrupted"
    reason = "disconnected"
    blame = Blame.TARGET
