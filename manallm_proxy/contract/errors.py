"""What can go wrong on our side of the proxy.

An error knows its policy, so that code that catches one need not check its class: what the caller reads (``status``,
``type``, ``code``, ``param``: OpenAI's envelope) and when to retry. `provider_errors` has the other family: one
failed attempt at one target.

Messages are for people: what happened, to whom, what to do next. They never hold a key, a prompt, a traceback or a
provider's HTML.
"""

from __future__ import annotations

from typing import ClassVar, Final


class ProxyError(Exception):
    """Any error that a caller gets instead of an answer. ``str(error)`` is the message for the caller."""

    status: int = 500
    type: str = "internal_error"
    code: str | None = "internal_error"
    source: ClassVar[str] = "manallm-proxy"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        """Seconds until a retry makes sense, if that is known."""
        self.request_id: str | None = None
        """Of the request that failed; set before the error is rendered, since some formats have it in the body."""


class InternalError(ProxyError):
    """A bug in the proxy. The traceback is in the log, never in the answer."""

    def __init__(self, message: str = "an internal error; the proxy's log has the details") -> None:
        super().__init__(message)


class InvalidRequest(ProxyError):
    """The caller's request cannot be understood."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class OriginNotAllowed(ProxyError):
    """A web page that ``cors.origins`` does not name sent the request, and no client keys are configured."""

    status = 403
    type = "invalid_request_error"
    code = "origin_not_allowed"


class HostNotAllowed(ProxyError):
    """The Host header names another machine, or a page of another site sent the request, and no client keys are
    configured."""

    status = 403
    type = "invalid_request_error"
    code = "host_not_allowed"


class Untranslatable(InvalidRequest):
    """Valid in the client's own API, without an equivalent in others: only a provider that speaks it can serve it."""


class InvalidKey(ProxyError):
    """The key is missing, malformed or unknown."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class KeyRevoked(ProxyError):
    """The key was removed from the configuration while its request was in flight."""

    status = 401
    type = "invalid_request_error"
    code = "api_key_revoked"

    def __init__(self) -> None:
        super().__init__("the API key of this request has been revoked; ask whoever runs this proxy for a new one")


class ModelNotAllowed(ProxyError):
    """The key is known, but may not use this model."""

    status = 403
    type = "permission_error"
    code = "model_not_allowed"


class AdminOnly(ProxyError):
    """The key is known, but is not an operator's."""

    status = 403
    type = "permission_error"
    code = "admin_only"


class KeyLimited(ProxyError):
    """The key has reached its limit of requests per minute or of concurrent requests."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class EmbeddingSpaceMismatch(ProxyError):
    """A target of an alias gave vectors of another length than the alias has."""

    status = 502
    type = "provider_error"
    code = "embedding_space_mismatch"


class BudgetExceeded(ProxyError):
    """What the key or the alias may spend leaves too little for the request."""

    status = 429
    type = "rate_limit_error"
    code = "budget_exceeded"


class UnknownModel(ProxyError):
    """The model is neither an alias, nor ``provider/model`` of a known provider, nor a bare model's name."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class UnknownRequest(ProxyError):
    """An id that is not among the last requests."""

    status = 404
    type = "invalid_request_error"
    code = "request_not_found"


class UnknownRoute(ProxyError):
    """The path is not served."""

    status = 404
    type = "invalid_request_error"
    code = "unknown_url"


class MethodNotAllowed(ProxyError):
    """The path is served, but not with this method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class OperationNotSupported(ProxyError):
    """A part of another server's API that does not apply to this proxy."""

    status = 501
    type = "invalid_request_error"
    code = "not_implemented"


class BodyTimeout(ProxyError):
    """The request's head or body did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "body_timeout"


class BodyTooLarge(ProxyError):
    """The request's body is over ``limits.body``."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class HeadTooLarge(ProxyError):
    """The request line or the headers exceed what ``limits.header`` allows, or there are too many headers."""

    status = 431
    type = "invalid_request_error"
    code = "header_too_large"


class ExpectationFailed(ProxyError):
    """An ``Expect`` other than ``100-continue``."""

    status = 417
    type = "invalid_request_error"
    code = "expectation_failed"


class UnsupportedMedia(ProxyError):
    """The request's body has an unsupported ``Content-Encoding``."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_encoding"


class Overloaded(ProxyError):
    """The proxy itself already has ``limits.concurrent_requests`` in flight."""

    status = 503
    type = "overloaded_error"
    code = "overloaded"


class LoopDetected(ProxyError):
    """The request has passed too many proxies of this kind: some of them ask each other in a circle."""

    status = 502
    type = "provider_error"
    code = "loop_detected"

    def __init__(self, hops: int) -> None:
        super().__init__(
            f"this request has passed {hops} manallm-proxies, so some of them ask each other in a circle; whoever runs "
            "them can take one out of the other's chain"
        )


class ShuttingDown(ProxyError):
    """The drain ended before the answer did."""

    status = 503
    type = "overloaded_error"
    code = "shutting_down"


UNAUTHENTICATED: Final = frozenset(
    str(kind.code) for kind in (InvalidKey, OriginNotAllowed, HostNotAllowed, MethodNotAllowed, UnknownRoute)
)
"""Codes of refusals that need no key, so that anyone who can connect can cause any number of them."""
REFUSALS: Final = frozenset(str(kind.code) for kind in (InvalidKey, KeyRevoked, ModelNotAllowed, AdminOnly, KeyLimited))
"""Codes of the errors that are due to a client's key or the lack of one."""
