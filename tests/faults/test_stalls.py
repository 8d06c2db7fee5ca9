"""What the largest requests and answers cost everybody else: the longest ``GET /health`` meanwhile, and the memory.

Over real sockets, from a process of its own. The figures are printed; they fail the test only where they are out of
all proportion, since they say as much about what else the machine does.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import os
import random
import statistics
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from tests.proxy import Process, openai, process, proxy, resident, settings
from tests.servers import gemini_server, ollama_server
from tests.stall import peak, raw_post
from tests.upstreams import DONE, Connection, Seen, answers, chunk, completion, each, status, upstream

pytestmark = [pytest.mark.heavy, pytest.mark.built_in]
MIB = 2**20
MOST = 250.0
"""Milliseconds that fail; the aim is 10."""
TIMES = 3


@define
class Stall:
    """The longest ``GET /health``, in milliseconds; ``ours``: the longest without the time in which a processor stood
    still (see `pauses`)."""

    longest: float
    ours: float


@asynccontextmanager
async def pinging(port: int) -> AsyncIterator[list[Stall]]:
    """One figure, once it is left."""
    found: list[Stall] = []
    programs = [("pinger.py", port), *(("pauses.py", cpu) for cpu in sorted(os.sched_getaffinity(0)))]
    children = [await child(f"tests/faults/{name}", str(argument)) for name, argument in programs]
    await asyncio.sleep(0.3)  # they start
    yield found
    (answers, *pauses) = [json.loads((await each.communicate(b"\n"))[0]) for each in children]
    still = [pause for each in pauses for pause in each]
    ours = (end - begin - sum(overlap(pause, (begin, end)) for pause in still) for begin, end in answers)
    found.append(Stall(max(end - begin for begin, end in answers) * 1000, max(0.0, *ours) * 1000))


async def child(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe)


def overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    return max(0.0, min(one[1], other[1]) - max(one[0], other[0]))


def told(stalls: list[Stall]) -> str:
    """The medians."""
    ours = statistics.median(each.ours for each in stalls)
    return f"{median(stalls):6.1f} ms, {ours:4.1f} without the machine's pauses"


def median(stalls: list[Stall]) -> float:
    return statistics.median(each.longest for each in stalls)


def tool_calls(number: int) -> list[dict[str, Any]]:
    function = {"name": "f", "arguments": "{}"}
    return [{"index": n, "id": f"c{n}", "type": "function", "function": function} for n in range(number)]


@cache
def answer(name: str) -> bytes:
    """One provider's answer, made once."""
    whole = completion()
    match name:
        case "keys":
            return json.dumps({**whole, **{f"{n:07x}": 1 for n in range(3_000_000)}}).encode()
        case "zipped-250":
            return gzip.compress(json.dumps(completion("x" * 250 * MIB)).encode(), 1)
        case "zipped-60" | "text-60":
            body = json.dumps(completion("x" * 60 * MIB)).encode()
            return gzip.compress(body, 1) if name.startswith("zipped") else body
        case "calls-100" | "calls-90":
            whole["choices"][0]["message"]["tool_calls"] = tool_calls(int(name[6:]) * 1000)
            return json.dumps(whole).encode()
        case "line-100" | "line-90":
            frame = json.loads(chunk("x")[6:])
            frame["choices"][0]["delta"] = {"tool_calls": tool_calls(int(name[5:]) * 1000)}
            return b"data: " + json.dumps(frame).encode() + b"\n\n" + chunk(None, finish="stop") + DONE
        case "vectors":
            vectors = [[random.uniform(-1, 1) for _ in range(768)] for _ in range(50)]  # not secret
            rows = [{"object": "embedding", "index": n, "embedding": vectors[n % 50]} for n in range(10_000)]
            return json.dumps({"object": "list", "data": rows, "model": "m"}).encode()
    return json.dumps(whole).encode()


async def serve(connection: Connection, seen: Seen) -> None:
    """The answer that the model's name asks for."""
    name = seen.json["model"] if len(seen.body) < MIB else ""
    extra = "Content-Encoding: gzip\r\n" if name.startswith("zipped") else ""
    if name.startswith("line-"):
        await connection.head(extra=extra)
        await connection.chunk(answer(name))
        await connection.end()
    else:
        await connection.reply(answer(name), extra=extra)


@define
class Row:
    """A request: its door, the provider and model, what else it holds; ``most``: milliseconds of the median."""

    path: str
    model: str
    more: dict[str, Any]

    @property
    def body(self) -> bytes:
        return json.dumps({"model": self.model, "max_tokens": 9, "stream": False, **self.more}).encode()


CHAT, MESSAGES, RESPONSES, OLLAMA = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"
CHATS = (CHAT, MESSAGES, OLLAMA)
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
MANY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi there"}] * 10_000}
LONG: dict[str, Any] = {"messages": [{"role": "user", "content": "x" * 30 * MIB}]}
INPUTS: dict[str, Any] = {"input": ["a"] * 10_000}
ROWS = {
    "idle": Row(CHAT, "o/hi", HI),
    "3,000,000 keys": Row(CHAT, "o/keys", HI),
    "zipped 250 MiB": Row(CHAT, "o/zipped-250", HI),
    "zipped 250 MiB, forward proxy": Row(CHAT, "f/zipped-250", HI),
    "zipped 60 MiB": Row(CHAT, "o/zipped-60", HI),
    "60 MiB": Row(CHAT, "o/text-60", HI),
    "60 MiB, translated": Row(MESSAGES, "o/text-60", HI),
    "vectors": Row("/v1/embeddings", "o/vectors", INPUTS),
    "vectors, forward proxy": Row("/v1/embeddings", "f/vectors", INPUTS),
    "vectors to base64": Row("/v1/embeddings", "o/vectors", {**INPUTS, "encoding_format": "base64"}),
    "vectors, translated": Row("/api/embed", "o/vectors", INPUTS),
    "calls": Row(CHAT, "o/calls-100", HI),
    "calls, within the bound": Row(CHAT, "o/calls-90", HI),
    "calls, translated": Row(MESSAGES, "o/calls-90", HI),
    "line of calls": Row(CHAT, "o/line-100", {**HI, "stream": True}),
    "line of calls, within the bound": Row(CHAT, "o/line-90", {**HI, "stream": True}),
    "line of calls, translated": Row(MESSAGES, "o/line-90", {**HI, "stream": True}),
    **{
        f"10,000 messages, {path} to {to}": Row(path, f"{to}/hi", MANY)
        for path in (CHAT, MESSAGES, OLLAMA)
        for to in "olg"
    },
    "10,000 items, responses": Row(RESPONSES, "o/hi", {"input": MANY["messages"]}),
    **{
        f"30 MiB, {path} to {to}": Row(path, f"{to}/hi", LONG)
        for path, to in ((CHAT, "o"), (CHAT, "g"), (MESSAGES, "l"))
    },
}


@asynccontextmanager
async def forward_proxy() -> AsyncIterator[int]:
    """Its port. It knows plain HTTP, and one request a connection."""

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, _, rest = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        method, url, version = line.split(b" ")
        place, _, path = url.removeprefix(b"http://").partition(b"/")
        host, _, port = place.partition(b":")
        beyond, further = await asyncio.open_connection(host.decode(), int(port))
        further.write(b"%b /%b %b\r\n%b" % (method, path, version, rest))
        await asyncio.gather(pump(reader, further), pump(beyond, writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(MIB):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Process]:
    """The real process with a provider of each kind, one of them behind a forward proxy."""
    async with (
        upstream(each(serve)) as plain,
        upstream(each(ollama_server)) as ollama,
        upstream(each(gemini_server)) as google,
        forward_proxy() as port,
    ):
        providers = {
            "o": openai(plain.url),
            "f": openai(plain.url, proxy=f"http://127.0.0.1:{port}"),
            "l": {"kind": "ollama", "base_url": ollama.url},
            "g": {"kind": "google", "base_url": google.url, "api_key": "a-key-of-google"},
        }
        config = settings(providers, ["o/m"], timeouts={"first_byte": 120, "idle": 120}, log={"level": "info"})
        async with process(config, folder) as running:
            yield running


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.timeout(400)
async def test_stall(tmp_path: Path, name: str) -> None:
    """Median of three."""
    row = ROWS[name]
    answer(row.model.partition("/")[2])
    stalls: list[Stall] = []
    async with served(tmp_path) as running:
        port = int(running.url.rpartition(":")[2])
        await raw_post(port, CHAT, ROWS["idle"].body)
        with peak(running.pid) as taken:
            for _ in range(TIMES):
                async with pinging(port) as found:
                    answered = await raw_post(port, row.path, row.body, 100)
                stalls += found
    print(f"\n{told(stalls)}  +{taken.mib:4.0f} MiB  {answered[9:12].decode()}  {name}")
    assert median(stalls) < MOST


async def test_floods_to_those_who_do_not_read(tmp_path: Path) -> None:
    """A hundred at once: they share one budget for a turn of the loop."""

    async def flood(connection: Connection, seen: Seen) -> None:
        await connection.head()
        while True:
            await connection.chunk(chunk("x" * 8000) * 8)

    async with upstream(each(flood)) as gpu, process(settings({"gpu": openai(gpu.url)}), tmp_path) as running:
        port = int(running.url.rpartition(":")[2])
        body = ROWS["idle"].body.replace(b"o/hi", b"gpu/m").replace(b'"stream": false', b'"stream": true')
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        stalls: list[Stall] = []
        for _ in range(TIMES):
            async with pinging(port) as found:
                opened = [await asyncio.open_connection("127.0.0.1", port, limit=1) for _ in range(100)]
                for _, writer in opened:
                    writer.write(head + body)
                await asyncio.sleep(2)
            for _, writer in opened:
                writer.transport.abort()
            stalls += found
        print(f"\n{told(stalls)}  {resident(running.pid):.0f} MiB  100 floods to non-readers")
    assert median(stalls) < 4 * MOST


FAILURES: dict[str, Callable[..., Any]] = {
    "400": status("400 Bad Request", b'{"error": {"message": "no"}}'),
    "500": status("500 Internal Server Error"),
    "429": status("429 Too Many Requests"),
    "served": answers,
}


@pytest.mark.parametrize("kind", ["openai", "ollama"])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.timeout(400)
async def test_a_thousand_failures(tmp_path: Path, failure: str, kind: str) -> None:
    """Of 1 MiB, the cycle collector off: less than 16 MiB stay."""
    asked = {"model": "p/m", "stream": False, "messages": [{"role": "user", "content": "x" * MIB}]}
    body = json.dumps(asked).encode()
    failing = ollama_server if failure == "served" and kind == "ollama" else FAILURES[failure]
    async with upstream(each(failing)) as server:
        provider = openai(server.url) if kind == "openai" else {"kind": "ollama", "base_url": server.url}
        config = settings({"p": provider}, health={"failure_threshold": 10**6}, log={"level": "error"})
        async with proxy(config, tmp_path) as p:
            for _ in range(50):
                await raw_post(p.port, CHAT, body)
                server.seen.clear()
            gc.collect()
            gc.disable()
            try:
                before = resident(os.getpid())
                for _ in range(1000):
                    await raw_post(p.port, CHAT, body)
                    server.seen.clear()
                    server.connections.clear()
                grown = resident(os.getpid()) - before
            finally:
                gc.enable()
    print(f"\n{grown:+6.1f} MiB after 1,000 requests of 1 MiB: {kind}, {failure}")
    assert grown < 16
