"""The private names of aiohttp's server that we use, each checked at import.

aiohttp may rename any of them in any release. Then the import fails with the name and the version, rather than a
request in production; ``tests/test_server_internals.py`` shows that each still has its effect.
"""

from __future__ import annotations

from typing import Any, Final

import aiohttp
from aiohttp import HttpVersion, HttpVersion11, web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import RequestHandler

TOO_MANY_HEADERS: Final = "Too many headers received"
"""The message of the BadHttpMessage that aiohttp's parsers raise: there is no class for this error."""


def _check() -> None:
    wanted: tuple[tuple[type, tuple[str, ...]], ...] = (
        (RequestHandler, ("_request_count", "_messages", "_current_request", "force_close", "handle_error")),
        (RequestHandler, ("_parser", "_read_bufsize", "max_line_size", "max_field_size", "max_headers")),
        (web.StreamResponse, ("_eof_sent", "_keep_alive")),
        (web.BaseRequest, ("_version", "keep_alive", "writer")),
    )
    missing = [f"{owner.__name__}.{name}" for owner, names in wanted for name in names if not _has_name(owner, name)]
    if missing:
        raise ImportError(
            f"aiohttp {aiohttp.__version__} has no {', '.join(missing)}, which manallm-proxy builds on: "
            "install the version of constraints.txt (pip install -c constraints.txt), and report this"
        )


def _has_name(owner: type, name: str) -> bool:
    """Whether `name` is a method, a class attribute, a slot, or an attribute that ``__init__`` sets."""
    code = getattr(vars(owner).get("__init__"), "__code__", None)
    return hasattr(owner, name) or (code is not None and name in code.co_names)


_check()


def version_of(request: web.BaseRequest) -> HttpVersion:
    """``request.version``, without caching it as that property does: `speak_http11` may still change it."""
    return request._version


def speak_http11(request: web.BaseRequest) -> None:
    """Makes the answer HTTP/1.1, whatever the request said: aiohttp would answer HTTP/0.9 in its own way."""
    request._version = HttpVersion11


def is_answered(request: web.BaseRequest) -> bool:
    """Whether any byte of an answer has been handed to the connection."""
    return request.writer.output_size > 0


def mark_answered(request: web.BaseRequest, size: int) -> None:
    """Counts `size` bytes of an answer that bypassed aiohttp's writer, so that aiohttp sends no other."""
    request.writer.output_size += size


def mark_sent(response: web.StreamResponse, keep_alive: bool) -> None:
    """Marks `response` as sent, so that aiohttp writes nothing more for it; `keep_alive`: the connection stays open."""
    response._eof_sent = True
    response._keep_alive = keep_alive


def requests_begun(connection: RequestHandler) -> int:
    """The number of requests whose head has arrived over `connection`."""
    return connection._request_count


def is_handling(connection: RequestHandler) -> bool:
    """Whether a request of `connection` is being handled or is queued."""
    return connection._current_request is not None or bool(connection._messages)


def last_payload(connection: RequestHandler) -> aiohttp.StreamReader | None:
    """The body of the last queued request; None if none is queued."""
    return connection._messages[-1][1] if connection._messages else None


def forget_body(connection: RequestHandler, payload: aiohttp.StreamReader) -> None:
    """Makes `connection` expect the next request, since the body that its parser waits for has come another way.

    `payload`, through which it would have come, ends. The parser's own way to learn of it is to be fed all of it.
    """
    old = connection._parser
    if old is not None:
        more: dict[str, Any] = {}
        if hasattr(connection, "_max_msg_queue_size"):  # not in aiohttp 3.14.3
            more["max_msg_queue_size"] = connection._max_msg_queue_size
        connection._parser = type(old)(
            connection,
            connection._loop,
            connection._read_bufsize,
            max_line_size=connection.max_line_size,
            max_field_size=connection.max_field_size,
            max_headers=connection.max_headers,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            **more,
        )
    payload.feed_eof()


def is_too_long(error: BaseException | None) -> bool:
    """Whether a request was refused because its request line or a header is too long."""
    return isinstance(error, LineTooLong)


def has_too_many_headers(error: BaseException | None) -> bool:
    """Whether a request was refused because it has too many headers."""
    return isinstance(error, BadHttpMessage) and error.message == TOO_MANY_HEADERS
