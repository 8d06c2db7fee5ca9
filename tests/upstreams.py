"""Providers as raw sockets: each connection plays a script, and what it saw is kept.

aiohttp's test servers cannot send wrong HTTP, so faults need sockets of our own.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from attrs import define, field

from tests.ports import free_port, held

Script = Callable[["Connection"], Awaitable[None]]
Answer = Callable[["Connection", "Seen"], Awaitable[None]]


@define(eq=False)
class Seen:
    """One request as a provider saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@define(eq=False)
class Connection:
    """One accepted connection. ``closed`` is set when the peer has gone."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    upstream: Upstream
    closed: asyncio.Event = field(factory=asyncio.Event)
    answering: bool = False
    """A POST has come over it."""

    async def request(self) -> Seen | None:
        """The next request on this connection; None where the peer closed it."""
        while (seen := await self._next()) is not None:
            if seen.path != "/api/show" or self.upstream.shows:
                self.upstream.seen.append(seen)
                self.answering = self.answering or seen.method == "POST"
                return seen
            await self.reply({"error": "model not found"}, "404 Not Found")
        return None

    async def _next(self) -> Seen | None:
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Seen(method, path, headers, body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: str = "200 OK", content_type: str = "text/event-stream", extra: str = "") -> None:
        """A head with a chunked body to follow."""
        await self.send(
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n{extra}\r\n".encode()
        )

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def reply(
        self,
        body: bytes | dict[str, Any],
        status: str = "200 OK",
        content_type: str = "application/json",
        extra: str = "",
    ) -> None:
        """A whole answer with a length."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.send(
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(data)}\r\n{extra}\r\n".encode()
            + data
        )

    def reset(self) -> None:
        """RST instead of FIN."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.close()

    async def gone(self) -> None:
        """Returns when the peer has closed its end."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass
        self.closed.set()


@define(eq=False)
class Upstream:
    """A scripted provider. ``script`` answers one connection; probes (GET) are answered by `models`."""

    script: Script
    models: list[str] = field(factory=list)
    seen: list[Seen] = field(factory=list)
    connections: list[Connection] = field(factory=list)
    failed: list[Exception] = field(factory=list)
    """What its script has raised: the test's own mistakes."""
    go: asyncio.Event = field(factory=asyncio.Event)
    """For the script to wait on, and for the test to set."""
    probe_status: str = "200 OK"
    shows: bool = False
    """Whether the script answers ``/api/show``; else no model has anything to show."""
    port: int = 0
    context: ssl.SSLContext | None = None
    _server: asyncio.Server | None = None
    _held: socket.socket | None = None
    """The port of one that is away."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def posts(self) -> list[Seen]:
        return [s for s in self.seen if s.method == "POST"]

    async def start(self) -> None:
        self.port = self.port or free_port()  # which is free again when it comes back
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.context, backlog=1024)
        self.release()

    async def stop(self) -> None:
        """As a machine that is switched off: nothing listens, and what was open is reset."""
        if self._server is not None:
            self._server.close()
            for connection in self.connections:
                if not connection.writer.is_closing():
                    connection.reset()
            self._server = None
            self._held = held(self.port)

    def release(self) -> None:
        """Others may have the port now."""
        if self._held is not None:
            self._held.close()
            self._held = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer, self)
        self.connections.append(connection)
        try:
            await self.script(connection)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception as error:
            self.failed.append(error)  # asyncio would log it, and so would a proxy in this process
        finally:
            connection.closed.set()
            writer.close()

    async def probe(self, connection: Connection) -> None:
        rows = [{"id": m, "object": "model", "created": 1} for m in self.models]
        tags = [{"name": m, "model": m} for m in self.models]
        await connection.reply({"object": "list", "data": rows, "models": tags}, self.probe_status)


@asynccontextmanager
async def upstream(script: Script, models: list[str] | None = None, *, shows: bool = False) -> AsyncIterator[Upstream]:
    """A provider on a port of its own that plays `script` for every connection."""
    made = Upstream(script, models or [], shows=shows)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
        made.release()
    for error in made.failed:
        raise error


def each(answer: Callable[[Connection, Seen], Awaitable[None]]) -> Script:
    """A script that keeps its connection: probes are answered, each POST is handed to `answer`."""

    async def script(connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if seen.method == "GET":
                await connection.upstream.probe(connection)
            else:
                await answer(connection, seen)

    return script


def completion(text: str = "Hello", model: str = "m") -> dict[str, Any]:
    """A chat completion as OpenAI writes it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def chunk(
    content: str | list[dict[str, Any]] | None = None,
    *,
    finish: str | None = None,
    role: bool = False,
    model: str = "m",
) -> bytes:
    """One SSE frame of a chat stream."""
    delta: dict[str, Any] = {"role": "assistant", "content": ""} if role else {}
    if content is not None:
        delta["content"] = content
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


USAGE = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
)
DONE = b"data: [DONE]\n\n"


async def answers(connection: Connection, seen: Seen) -> None:
    """A well-behaved OpenAI-compatible server."""
    request = seen.json
    if "input" in request:
        rows = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]
        await connection.reply(
            {"object": "list", "data": rows, "model": "m", "usage": {"prompt_tokens": 2, "total_tokens": 2}}
        )
        return
    if not request.get("stream"):
        await connection.reply(completion())
        return
    await connection.head()
    for frame in (chunk(role=True), chunk("Hel"), chunk("lo"), chunk(finish="stop")):
        await connection.chunk(frame)
    if (request.get("stream_options") or {}).get("include_usage"):
        await connection.chunk(USAGE)
    await connection.chunk(DONE)
    await connection.end()


def status(
    line: str, body: bytes | dict[str, Any] = b"{}", extra: str = ""
) -> Callable[[Connection, Seen], Awaitable[None]]:
    """Answers every request with one status."""

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.reply(body, line, extra=extra)

    return answer


async def endless(connection: Connection, seen: Seen) -> None:
    """Says one word and never ends, until the test lets it or the proxy leaves."""
    await connection.head()
    await connection.chunk(chunk("one"))
    waits = [asyncio.ensure_future(connection.upstream.go.wait()), asyncio.ensure_future(connection.gone())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for waiting in waits:
        waiting.cancel()
    await asyncio.wait(waits)  # else two read at a time
    await connection.chunk(chunk(finish="stop") + b"data: [DONE]\n\n")
    await connection.end()
