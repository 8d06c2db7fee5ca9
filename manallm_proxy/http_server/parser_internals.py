"""aiohttp's request parser: what it refuses and why, and how a connection gets a new one.

Since 3.13.4 it refuses a request that has a header twice of which there may be one, even with the same value. Clients
do that: ollama4j with ``Content-Type`` in each GET. Other servers take them, and so does this one at the beginning of a
connection, where both say the same and nothing depends on it. Whatever decides where a request ends, or for whom it is,
is refused as before.
"""

from __future__ import annotations

import re
from typing import Any, Final

from aiohttp import StreamReader
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import RequestHandler

from manallm_proxy.contract.errors import HeadTooLarge, InvalidRequest, ProxyError
from manallm_proxy.http_server import web

TOO_MANY_HEADERS: Final = "Too many headers received"
"""The message of the BadHttpMessage that aiohttp's parsers raise: there is no class for this error."""
_REPEATED: Final = re.compile(r"Duplicate '([A-Za-z-]+)' header found\.")
"""As above; the name is one of some ten that aiohttp knows."""
_HARMLESS: Final = (b"content-type", b"user-agent")


def refusal_of(error: BaseException | None, header_limit: int) -> ProxyError:
    """What the client of a request that could not be parsed is told; nothing of what it sent."""
    if isinstance(error, LineTooLong):
        return HeadTooLarge("a header, or the path, is over the limit (limits.header)")
    if isinstance(error, BadHttpMessage) and error.message == TOO_MANY_HEADERS:
        return HeadTooLarge(f"a request may have {header_limit} headers")
    if isinstance(error, BadHttpMessage) and (repeated := _REPEATED.fullmatch(error.message)):
        return InvalidRequest(f"the header {repeated[1]} is there more than once")
    return InvalidRequest("this is not valid HTTP")


def without_repeats(error: BaseException | None, data: bytes) -> bytes | None:
    """`data`, which begins with a whole head, without the repetitions in it that did no harm; None if `error` is not
    about these."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not (end and isinstance(error, BadHttpMessage) and _REPEATED.fullmatch(error.message)):
        return None
    lines = head.split(b"\r\n")
    seen: dict[bytes, bytes] = {}
    kept = []
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name not in _HARMLESS or seen.get(name) != value:
            kept.append(line)
            seen.setdefault(name, value)
    return b"\r\n".join(kept) + end + rest if len(kept) < len(lines) else None


def take_back(connection: RequestHandler) -> bool:
    """Forgets the refusal of the first request of `connection`, and what its parser has read; False if another one
    came before it."""
    if connection._request_count != 1:
        return False
    connection._messages.clear()
    connection._request_count = 0
    _renew_parser(connection)
    return True


def forget_body(connection: RequestHandler, payload: StreamReader) -> None:
    """Makes `connection` expect the next request, since the body that its parser waits for was received another way:
    a parser only learns that by being fed the body. Ends `payload`, through which it would have come."""
    _renew_parser(connection)
    payload.feed_eof()


def _renew_parser(connection: RequestHandler) -> None:
    old = connection._parser
    if old is not None:
        size = getattr(connection, "_max_msg_queue_size", None)  # not in aiohttp 3.14.3
        more: dict[str, Any] = {} if size is None else {"max_msg_queue_size": size}
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
