"""What can go wrong on our side of the proxy: an answer other than the one that was asked for.

An error knows its policy, so that code that catches one need not ask what kind it is: what the caller reads
(``status``, ``type``, ``code``, ``param``: OpenAI's envelope) and when another try makes sense. `provider_errors`
has the other family: one failed attempt at one target.

Messages are for the person who reads them: what happened, to whom, what to do next. They never hold a key, a
prompt, a traceback or a provider's HTML.
"""

from __future__ import annotations

from typing import ClassVar, Final


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
        self.request_id: str | None = None
        """Of the request that it answers, noted where it is rendered: some formats have it in the body."""


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


class HostNotAllowed(ProxyError):
    """A name that is none of ours, or a page of another site, where no client key would keep it out."""

    status = 403
    type = "invalid_request_error"
    code = "host_not_allowed"


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


REFUSALS: Final = frozenset(str(kind.code) for kind in (InvalidKey, KeyRevoked, ModelNotAllowed, AdminOnly, KeyLimited))
"""The codes of all refusals that a key, or none, can earn."""
