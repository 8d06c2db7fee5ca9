"""Maps what the transport raises to our errors, here and nowhere else.

Which class aiohttp raises for which fault was observed with 3.14.5 and one raw socket server per fault; see
tests/test_client.py and tests/faults/test_connect.py.
"""

from __future__ import annotations

import errno
import socket
import ssl

import aiohttp

from manallm_proxy.contract.provider_errors import (
    NO_TLS,
    NOT_TRUSTED,
    UNKNOWN_HOST,
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
    Disconnected,
    ProviderError,
    ProxyRefused,
    ReadTimeout,
    ResourcesExhausted,
)
from manallm_proxy.http_client.aiohttp_internals import HttpProcessingError

ERRORS = (aiohttp.ClientError, TimeoutError, OSError, HttpProcessingError)
"""All that a request through aiohttp raises if the network or the peer fails."""

_ERRNO_DETAILS = {
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
}
_NOTHING_LEFT = {
    errno.EMFILE: "no file descriptors left here",
    errno.ENFILE: "no file descriptors left on this machine",
    errno.ENOBUFS: "no buffers left here",
    errno.ENOMEM: "no memory left here",
    errno.EADDRNOTAVAIL: "no local ports left here",
}
"""Error numbers that are about this process, not about the peer."""


def transport_error(error: BaseException, name: str) -> ProviderError | None:
    """Our error for `error`, raised by an attempt at provider `name`; None if it is not one of the transport's.

    Only the class counts: texts may contain raw response headers, and ``ClientResponseError.status`` is 400 for
    malformed answers, which is not the provider's status.
    """
    match error:
        case aiohttp.ClientConnectorDNSError():
            return ConnectFailed(f"{name}: its host name cannot be looked up", detail=UNKNOWN_HOST)
        case aiohttp.ClientConnectorCertificateError() | ssl.SSLError():
            return connect_error(error, name)
        case aiohttp.ClientConnectorSSLError():
            return ConnectFailed(f"{name}: no TLS is spoken there", detail=NO_TLS)
        case aiohttp.ClientHttpProxyError() if error.status == 407:
            return ProxyRefused(name)
        case aiohttp.ClientConnectorError():
            return connect_error(error.os_error, name)
        case aiohttp.ConnectionTimeoutError():
            return ConnectTimeout(f"{name}: no connection in time")
        case aiohttp.SocketTimeoutError():
            return ReadTimeout(f"{name}: fell silent")
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
            return Disconnected(f"{name}: closed the connection before its answer was complete", detail="closed")
        case aiohttp.ClientResponseError() | HttpProcessingError() | aiohttp.InvalidURL():
            return malformed(name)
        case aiohttp.ClientOSError() | OSError() if not isinstance(error, TimeoutError):
            return Disconnected(f"{name}: the connection was reset", detail="reset")
        case TimeoutError():
            return ReadTimeout(f"{name}: fell silent")
        case aiohttp.ClientError():
            return Disconnected(f"{name}: the connection failed", detail=type(error).__name__)
        case _:
            return None


def malformed(name: str) -> BadResponse:
    """The error for invalid HTTP from provider `name`."""
    return BadResponse(f"{name}: its answer is not valid HTTP", detail="malformed http")


def connect_error(error: BaseException, name: str) -> ConnectFailed | ResourcesExhausted:
    """Our error for `error`, raised by connecting to provider `name`."""
    match error:
        case socket.gaierror():
            return ConnectFailed(f"{name}: its host name cannot be looked up", detail=UNKNOWN_HOST)
        case aiohttp.ClientConnectorCertificateError() | ssl.SSLCertVerificationError():
            verdict = _verdict(error)
            return ConnectFailed(
                f"{name}: its TLS certificate is not trusted: {verdict}", detail=f"{NOT_TRUSTED}{verdict}"
            )
        case ssl.SSLError():
            return ConnectFailed(f"{name}: no TLS is spoken there", detail=NO_TLS)
        case _:
            number = getattr(error, "errno", None) or 0
            if (lack := _NOTHING_LEFT.get(number)) is not None:
                return ResourcesExhausted(f"{name}: not asked: {lack}", detail=lack, retry_after=1.0)
            detail = _ERRNO_DETAILS.get(number, "failed")
            return ConnectFailed(f"{name}: connection {detail}", detail=detail)


def was_stale(error: BaseException) -> bool:
    """Whether `error` means that a pooled connection was dead before the first byte of a response."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # otherwise it is a partly parsed response head
    return isinstance(error, OSError) and not isinstance(error, aiohttp.ClientConnectorError | TimeoutError)


def _verdict(error: BaseException) -> str:
    """OpenSSL's text ("self-signed certificate", "certificate has expired"), which contains nothing of ours."""
    inner = getattr(error, "certificate_error", error)
    return str(getattr(inner, "verify_message", "") or "not verified").rstrip(".")
