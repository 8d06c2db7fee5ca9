"""Each fault before the first byte: what the provider does, and what has to follow."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal

from attrs import field, frozen

from tests.faults.dialects import Asked
from tests.faults.scene import probed_or_asked
from tests.upstreams import Connection, Script

Act = Callable[[Connection], Awaitable[Any]]
Then = Literal["fin", "reset", "silence", "half-close", "next"]

LIMIT: Final = 0.1
"""Seconds: of the faulty provider, the one timeout that the fault exceeds."""
ALL: Final[frozenset[Asked]] = frozenset({"chat", "stream", "embeddings"})
WHOLE: Final[frozenset[Asked]] = frozenset({"chat", "embeddings"})
STREAM: Final[frozenset[Asked]] = frozenset({"stream"})
GONE: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@frozen
class Fault:
    """``reason``: of the attempt; alternatives where no contract decides. ``costs``: seconds that it takes."""

    name: str
    act: Act
    reason: str = "bad_response"
    blames: Literal["target", "cools"] = "target"
    costs: float = 0.0
    at_accept: bool = False
    asked: frozenset[Asked] = ALL
    kinds: frozenset[str] = frozenset({"openai", "ollama", "google"})
    but: Mapping[str, str] = field(factory=dict)
    """Another reason for a kind: where only one can tell what the other cannot."""

    @property
    def is_below_http(self) -> bool:
        """It does not answer as HTTP wants it, so its connection is not used again."""
        return not self.act.__qualname__.startswith("answers.")

    def allows(self, reason: str, kind: str) -> bool:
        return reason in self.but.get(kind, self.reason).split("|")


def sends(data: bytes, then: Then = "fin") -> Act:
    """Bytes as they are, then the end of the connection, or silence until the peer leaves."""

    async def act(connection: Connection) -> None:
        if data:
            await connection.send(data)
        if then == "reset":
            connection.reset()
        elif then == "half-close":
            connection.writer.write_eof()
            await connection.gone()
        elif then == "silence":
            await connection.gone()

    return act


def answers(status: str, body: bytes = b"{}", extra: str = "", content_type: str = "application/json") -> Act:
    """A whole answer, and the connection stays."""

    async def act(connection: Connection) -> None:
        await connection.reply(body, status, content_type, extra)

    return act


def endless(start: bytes, again: bytes, pause: float = 0.0) -> Act:
    """`again` and again, until the peer has had enough; the test's end if it never has."""

    async def act(connection: Connection) -> None:
        await connection.send(start)
        while True:
            await connection.send(again)
            await asyncio.sleep(pause)

    return act


def armed(fault: Fault) -> Script:
    """Well until ``upstream.go`` is set; from then on every POST, or every connection, meets `fault`."""

    async def script(connection: Connection) -> None:
        if fault.at_accept and connection.upstream.go.is_set():
            connection.answering = True
            await fault.act(connection)
            return
        while await probed_or_asked(connection) is not None:
            await fault.act(connection)
            if fault.is_below_http:
                return

    return script


def status(code: int, reason: str = "http_5xx", **more: Any) -> Fault:
    return Fault(f"status {code}", answers(f"{code} No", b'{"error":{"message":"no"}}'), reason, **more)


def body(name: str, data: bytes, content_type: str = "application/json", **more: Any) -> Fault:
    return Fault(name, answers("200 OK", data, "", content_type), **more)


def raw(name: str, data: bytes, then: Then = "fin", **more: Any) -> Fault:
    return Fault(name, sends(data, then), **more)


def cools(name: str, extra: str) -> Fault:
    return Fault(f"429, {name}", answers("429 Too Many", extra=extra), "rate_limited", "cools")


CLOSED: Final[dict[str, Any]] = {"reason": "disconnected"}
SLOW: Final[dict[str, Any]] = {"reason": "first_byte_timeout", "costs": LIMIT}
EITHER: Final[dict[str, Any]] = {"reason": "bad_response|disconnected"}
ELSEWHERE: Final = "Location: http://127.0.0.1:9/\r\n"
OPENAI: Final = frozenset({"openai"})
GZIP: Final = GONE + b"Content-Encoding: gzip\r\n"
CUT_GZIP: Final = gzip.compress(b'{"choices":[]}' * 100)[:-9]

FAULTS: Final = [
    # the connection ends instead of an answer
    raw("accepts and closes", b"", at_accept=True, **CLOSED),
    raw("accepts and resets", b"", "reset", at_accept=True, **CLOSED),
    raw("half-closes at once", b"", "half-close", **CLOSED),
    raw("closes after the request", b"", **CLOSED),
    raw("resets after the request", b"", "reset", **CLOSED),
    raw("one byte, closes", b"H", **CLOSED),
    raw("one byte, resets", b"H", "reset", **CLOSED),
    raw("half a head, closes", b"HTTP/1.1 200 OK\r\nX-Secret: 1\r\nCont", **CLOSED),
    raw("half a head, resets", b"HTTP/1.1 200 OK\r\nX-Secret: 1\r\nCont", "reset", **CLOSED),
    raw("a head, closes (length)", GONE + b"Content-Length: 100\r\n\r\n", **CLOSED),
    raw("a head, resets (length)", GONE + b"Content-Length: 100\r\n\r\n", "reset", **CLOSED),
    raw("a head, closes (chunks)", GONE + b"Transfer-Encoding: chunked\r\n\r\n", **CLOSED),
    raw("a body cut by FIN (length)", GONE + b"Content-Length: 100\r\n\r\n{", asked=WHOLE, **CLOSED),
    raw("a body cut by RST (length)", GONE + b"Content-Length: 100\r\n\r\n{", "reset", asked=WHOLE, **CLOSED),
    raw("a body cut by FIN (chunks)", GONE + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", asked=WHOLE, **CLOSED),
    raw(
        "a body cut by RST (chunks)", GONE + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", "reset", asked=WHOLE, **CLOSED
    ),
    # silence
    raw("silence", b"", "silence", **SLOW),
    raw("silence at accept", b"", "silence", at_accept=True, **SLOW),
    raw("half a head, silence", b"HTTP/1.1 200 OK\r\nContent-Ty", "silence", **SLOW),
    raw("a head, silence", GONE + b"Content-Length: 100\r\n\r\n", "silence", **SLOW),
    raw("a broken chunk, silence", GONE + b"Transfer-Encoding: chunked\r\n\r\n", "silence", **SLOW),
    raw(
        "half a body, silence",
        GONE + b"Content-Length: 9\r\n\r\n{",
        "silence",
        reason="read_timeout",
        costs=LIMIT,
        asked=WHOLE,
    ),
    Fault("comments for ever", endless(GONE + b"\r\n", b": wait\n\n", 0.01), asked=STREAM, kinds=OPENAI, **SLOW),
    Fault("a head byte by byte", endless(b"HTTP/1.1 200 OK\r\nX: ", b"a", 0.01), **SLOW),
    Fault("100 Continue for ever", endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), **SLOW),
    # no HTTP
    raw("garbage", bytes(range(256)) * 4),
    raw("a status line of rubbish", b"HTTP/1.1 abc def\r\n\r\n"),
    raw("a status of four digits", b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\n{}"),
    raw("an SSH banner", b"SSH-2.0-OpenSSH_9.2\r\n", at_accept=True),
    raw("HTTP/2 without asking", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80", at_accept=True),
    raw("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    raw("length and chunks", GONE + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    raw("NUL in a header", GONE + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}"),
    raw("a length of rubbish", GONE + b"Content-Length: -1\r\n\r\n{}"),
    raw("a header of 70 KB", GONE + b"X: " + b"a" * 70_000 + b"\r\nContent-Length: 2\r\n\r\n{}"),
    raw("an unknown encoding", GONE + b"Content-Encoding: nope\r\nContent-Length: 2\r\n\r\n{}", **EITHER),
    raw("gzip that is none", GONE + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", **EITHER),
    raw("gzip cut short", GZIP + b"Content-Length: %d\r\n\r\n" % len(CUT_GZIP) + CUT_GZIP, **EITHER),
    raw("switching protocols", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    Fault("headers for ever", endless(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"a" * 1000 + b"\r\n")),
    Fault("one header for ever", endless(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 1000)),
    # HTTP, but no answer
    body("HTML", b"<html>login</html>", "text/html", **EITHER),
    body("HTML that says JSON", b"<html>login</html>", **EITHER),
    body("an empty body", b"", asked=WHOLE),  # an empty stream is an answer
    body("JSON that is no object", b"null", **EITHER),
    body("JSON cut short", b'{"choices":[{"mess', **EITHER),
    body("an object of something else", b'{"id":1}', **EITHER),
    Fault("no content", answers("204 No Content", b"")),
    # elsewhere
    *[Fault(f"redirect {n}", answers(f"{n} Go", extra=ELSEWHERE)) for n in (301, 302, 307, 308)],
    # statuses
    status(500),
    status(502),
    status(503),
    status(504),
    status(529),
    status(408, "http_408", blames="cools"),
    status(498, "http_498", blames="cools"),
    cools("7 seconds", "Retry-After: 7\r\n"),
    cools("no time", ""),
    cools("garbage", "Retry-After: soon\r\n"),
    cools("a thousand million seconds", "Retry-After: 1000000000\r\n"),
    cools("a date", "Retry-After: Fri, 31 Dec 2100 23:59:59 GMT\r\n"),
]


def full_backlog() -> tuple[socket.socket, list[socket.socket]]:
    """A listener that answers no SYN any more, and what fills its queue: a machine that is switched off."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting = []
    for _ in range(4):
        each = socket.socket()
        each.setblocking(False)
        each.connect_ex(listener.getsockname())
        waiting.append(each)
    return listener, waiting
