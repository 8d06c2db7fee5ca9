"""What can go wrong, and what follows from it.

An error knows its policy, so that nobody who catches one has to ask what kind it is:

* what the caller is told: ``status``, ``type``, ``code``, ``param`` (OpenAI's envelope);
* whether the next target of the chain may be tried: ``retryable``, or ``widened_by`` for operators
  who list that class under ``fallback_on``;
* whom it blames: ``blame``, read by `health`.

Two families: `ProxyError` is ours to say, `ProviderError` is one failed attempt at one target.
Messages are for the person who reads them: what happened, to whom, what to do next. They never
hold a key, a prompt, a traceback or a provider's HTML.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar, Final


class Blame(Enum):
    """Whom a failed attempt speaks against."""

    NOBODY = "nobody"
    """The caller's mistake, or ours to mend: health is left alone."""
    REACH = "reach"
    """The provider, in a way that a probe can see as well: it could not be connected to."""
    SERVICE = "service"
    """The provider, in a way that only a request shows: 5xx, timeouts, broken answers."""
    TARGET = "target"
    """This one model of the provider."""
    LOAD = "load"
    """Busy or rate limited: it cools for a while, which is no failure."""


class ProxyError(Exception):
    """An answer other than the one that was asked for. ``str(error)`` is the message for the caller."""

    status: int = 500
    type: str = "internal_error"
    code: str | None = "internal_error"
    source: ClassVar[str] = "manallm-proxy"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        """Seconds after which another try makes sense, where that is known."""


class InternalError(ProxyError):
    """A bug of ours. The traceback is in the log, never in the answer."""


class InvalidRequest(ProxyError):
    """The caller's request cannot be understood."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class OriginNotAllowed(ProxyError):
    """A web page that ``cors.origins`` does not name, where no client key would keep it out."""

    status = 403
    type = "invalid_request_error"
    code = "origin_not_allowed"


class InvalidKey(ProxyError):
    """No key, one that cannot be read, or one that is not known."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class KeyRevoked(ProxyError):
    """The key was taken out of the configuration while its request was in flight."""

    status = 401
    type = "invalid_request_error"
    code = "api_key_revoked"

    def __init__(self) -> None:
        super().__init__("the API key of this request has been revoked; ask whoever runs this proxy for a new one")


class ModelNotAllowed(ProxyError):
    """The key is known, and the model is not among its own."""

    status = 403
    type = "permission_error"
    code = "model_not_allowed"


class AdminOnly(ProxyError):
    """The key is known, and is none for operators."""

    status = 403
    type = "permission_error"
    code = "admin_only"


class KeyLimited(ProxyError):
    """The key has used up what it may: in a minute, or at once."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class UnknownModel(ProxyError):
    """A name that is neither an alias, nor ``provider/model`` of a known provider, nor a bare model."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class UnknownRoute(ProxyError):
    """A path that is not served."""

    status = 404
    type = "invalid_request_error"
    code = "unknown_url"


class MethodNotAllowed(ProxyError):
    """A path that is served, with a method that is not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class NotDoneHere(ProxyError):
    """A part of another server's API that this one has no use for."""

    status = 501
    type = "invalid_request_error"
    code = "not_implemented"


class BodyTimeout(ProxyError):
    """The request's body stalled."""

    status = 408
    type = "invalid_request_error"
    code = "body_timeout"


class BodyTooLarge(ProxyError):
    """The request's body is over ``limits.body``."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class HeadTooLarge(ProxyError):
    """The request's line and headers are over ``limits.header``, or too many."""

    status = 431
    type = "invalid_request_error"
    code = "header_too_large"


class ExpectationFailed(ProxyError):
    """An ``Expect`` other than ``100-continue``."""

    status = 417
    type = "invalid_request_error"
    code = "expectation_failed"


class UnsupportedMedia(ProxyError):
    """The request's body is encoded in a way that is not read here."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_encoding"


class Overloaded(ProxyError):
    """The proxy itself has ``limits.concurrent_requests`` in hand."""

    status = 503
    type = "overloaded_error"
    code = "overloaded"


class ShuttingDown(ProxyError):
    """The drain is over before the answer was."""

    status = 503
    type = "overloaded_error"
    code = "shutting_down"


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


class ConnectTimeout(ProviderError):
    """No connection within ``timeouts.connect``: the box is off, or a firewall drops packets."""

    status = 504
    retryable, blame, reason = True, Blame.REACH, "connect_timeout"


class FirstByteTimeout(ProviderError):
    """Connected, and then nothing that says something within ``timeouts.first_byte``."""

    status = 504
    retryable, blame, reason = True, Blame.SERVICE, "first_byte_timeout"


class SlowModel(FirstByteTimeout):
    """The same from a server that loads models on demand: it speaks of this model only (wire.md B.4)."""

    blame = Blame.TARGET


class ReadTimeout(ProviderError):
    """The answer began and then fell silent for ``timeouts.idle``."""

    status = 504
    retryable, blame, reason = True, Blame.SERVICE, "read_timeout"


class Disconnected(ProviderError):
    """The provider closed or reset the connection before its answer was complete."""

    retryable, blame, reason = True, Blame.SERVICE, "disconnected"


class BadResponse(ProviderError):
    """Something came that is not an answer: malformed HTTP, HTML, broken JSON, a redirect."""

    retryable, blame, reason = True, Blame.SERVICE, "bad_response"


class ServerFailed(ProviderError):
    """5xx that speaks against the provider."""

    retryable, blame, reason = True, Blame.SERVICE, "http_5xx"


class ModelFailed(ServerFailed):
    """500: most often one model's trouble (a runner crashed, an option does not fit), not the server's."""

    blame = Blame.TARGET


class NotImplementedByProvider(ServerFailed):
    """501: this provider cannot do what was asked; another may. Nobody is sick."""

    blame = Blame.NOBODY


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
    """A 4xx that is the caller's: same status, the provider's own message, type and code."""

    type = "invalid_request_error"
    reason = "http_4xx"

    def __init__(
        self,
        message: str,
        *,
        provider_status: int,
        provider_type: str | None = None,
        provider_code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, provider_status=provider_status, param=param, retry_after=retry_after)
        self.status = provider_status
        self.type = provider_type or type(self).type
        self.code = provider_code or type(self).code

    @property
    def error_type(self) -> str:
        return f"http_{self.provider_status}"


class ContextTooLong(UpstreamSaid):
    """The prompt does not fit the model."""

    code = "context_length_exceeded"
    widened_by = "context_length"


class MissingModel(UpstreamSaid):
    """The provider does not have this model. Handed back; it blames the target only where the walk moves on."""

    code = "model_not_found"
    blame = Blame.TARGET
    widened_by = "missing_model"


class PaymentRequired(UpstreamSaid):
    """402: our account with the provider is empty."""

    type = "billing_error"
    code = "payment_required"
    widened_by = "payment"


class Unsupported(ProviderError):
    """The target is known to lack what the request needs."""

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


class StreamInterrupted(ProviderError):
    """A committed stream broke. Told in-band; never retried, never spliced."""

    code = "stream_interrupted"
    reason = "disconnected"
    blame = Blame.SERVICE


REFUSALS: Final = frozenset(str(kind.code) for kind in (InvalidKey, KeyRevoked, ModelNotAllowed, AdminOnly, KeyLimited))
"""The codes of all refusals that a key, or none, can earn."""
