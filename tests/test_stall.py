"""One request or one answer is not felt by another: the loop gets its turns, whatever the shape."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from manallm_proxy.config.model import Limits
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.doors.openai_embeddings import EmbeddingsDoor
from manallm_proxy.gateway.reports import in_turns
from manallm_proxy.openai.bounds import check_structure
from manallm_proxy.providers.pieces import PIECE_BYTES, PIECE_LINES, Pieces, fits
from tests.proxy import openai, proxy, settings
from tests.servers import gemini_server, ollama_server
from tests.stall import raw_post, stall
from tests.upstreams import DONE, Connection, Seen, chunk, completion, each, upstream

MIB = 2**20
MOST = 40.0
"""Milliseconds that fail a test: proxy, client and provider share one loop here, and others the machine."""
END = chunk("a", finish="stop") + DONE


def chat(extra: bytes = b"", model: bytes = b"o/m", messages: int = 1) -> bytes:
    said = b",".join([b'{"role":"user","content":"hi there"}'] * messages)
    return b'{"model":"%b","messages":[%b]%b}' % (model, said, extra)


@cache
def many_keys() -> bytes:
    return b"".join(b',"%07x":1' % n for n in range(8 * MIB // 12))


TOO_MUCH: dict[str, tuple[Callable[[], bytes], str]] = {
    "keys": (lambda: chat(many_keys()), "limits.keys"),
    "a key twice among many": (lambda: chat(many_keys() + b',"0000001":2'), "limits.keys"),
    "messages": (lambda: chat(messages=200_000), "limits.messages"),
    "tools": (lambda: chat(b',"tools":[' + b",".join([b'{"type":"function"}'] * 30_000) + b"]"), "limits.messages"),
    "parts": (lambda: chat(b',"x":[' + b"[]," * (2 * MIB) + b"1]"), "limits.parts"),
    "values": (lambda: chat(b',"stream_options":{"x":[' + b"1," * (4 * MIB) + b"1]}"), "limits.elements"),
    "depth": (lambda: chat(b',"x":' + b"[" * 300 + b"]" * 300), "limits.depth"),
}
"""Megabytes each, so they are made when they are wanted; and the key that has to be named."""


async def scripted(connection: Connection, seen: Seen) -> None:
    """Says at once, and without a look at the request, what the path asks for."""
    if b'"stream":true' in seen.body:
        zipped = b'"zipped"' in seen.body
        data = chunk("hi") + (b": c\n\n" * 200_000 if zipped else b"data: {}\n\n" * 50_000) + END
        await connection.head(extra="Content-Encoding: gzip\r\n" if zipped else "")
        await connection.chunk(gzip.compress(data, 1) if zipped else data)
        await connection.end()
    else:
        await connection.reply(completion())


@pytest.mark.parametrize("case", TOO_MUCH)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
async def test_too_much_structure_is_refused(tmp_path: Path, path: str, case: str) -> None:
    """With the key that raises the bound, in the door's shape, without a provider, and without a stop of the loop."""
    make, key = TOO_MUCH[case]
    body = make()
    async with upstream(each(scripted)) as o:
        async with proxy(settings({"o": openai(o.url)}), tmp_path) as p:
            stops: list[float] = []
            while not stops or (stops[-1] >= MOST and len(stops) < 3):  # the first body in a process pays for memory
                async with stall() as stopped:
                    answer = await raw_post(p.port, path, body)
                stops.append(stopped.longest * 1000)
        assert answer.startswith(b"HTTP/1.1 400") and key.encode() in answer
        assert not o.posts
        assert min(stops) < MOST


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/chat/completions", b"o/m"),
        ("/v1/chat/completions", b"l/m"),
        ("/v1/chat/completions", b"g/m"),
        ("/v1/messages", b"o/m"),
        ("/api/chat", b"l/m"),
    ],
)
async def test_ten_thousand_messages_pass(tmp_path: Path, path: str, model: bytes) -> None:
    """And are translated where the loop does not wait for it."""
    body = chat(b',"stream":false,"max_tokens":9', model, 10_000)
    gaps: list[float] = []
    async with upstream(each(scripted)) as o, upstream(each(ollama_server)) as ol, upstream(each(gemini_server)) as g:
        providers = {
            "o": openai(o.url),
            "l": {"kind": "ollama", "base_url": ol.url},
            "g": {"kind": "google", "base_url": g.url, "api_key": "k"},
        }
        async with proxy(settings(providers, ["o/m"]), tmp_path) as p:
            while len(gaps) < 3 and sum(gap < MOST for gap in gaps) < 2:
                async with stall() as stopped:
                    assert (await raw_post(p.port, path, body)).startswith(b"HTTP/1.1 200")
                gaps.append(stopped.longest * 1000)
    assert sum(gap < MOST for gap in gaps) == 2, "of three"


@pytest.mark.parametrize("kind", [b"plain", b"zipped"])
@pytest.mark.built_in
async def test_a_stream_of_nothing_leaves_turns(tmp_path: Path, kind: bytes) -> None:
    """Events and comments as fast as the socket takes them, also where some kilobytes inflate to a megabyte."""
    async with upstream(each(scripted)) as o:
        async with proxy(settings({"o": openai(o.url)}, log={"level": "error"}), tmp_path) as p:
            async with stall() as stopped:
                answer = await raw_post(p.port, "/v1/chat/completions", chat(b',"stream":true,"user":"%b"' % kind))
    assert b"[DONE]" in answer
    assert stopped.longest * 1000 < 2 * MOST  # the provider compresses in this loop


@pytest.mark.built_in
async def test_a_second_signal_waits_for_no_first_request(tmp_path: Path) -> None:
    """Of a connection that a browser has opened ahead: the loop had no turn for a second, nor had any other answer."""
    async with proxy(settings({"loop": {"kind": "loopback"}}), tmp_path) as p:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        assert await raw_post(p.port, "/v1/chat/completions", chat(model=b"loop/m"))  # so that it has been accepted
        async with stall() as stopped:
            p.app.stop()
            p.app.stop()
            assert await reader.read() == b""
        writer.close()
    assert stopped.longest * 1000 < 5 * MOST


def test_strings_have_no_structure() -> None:
    """Whatever is in a string is text, wherever a slice ends: quotes and backslashes in any number."""
    limits = Limits(keys=3, messages=1, parts=3, elements=20, depth=3)
    for size in range(32 * 1024 - 40, 32 * 1024):
        for text in (b'\\"', b"\\\\", b'\\\\\\"', b"\\n[{"):
            body = b'{"a":"' + b"x" * size + text * 9 + b'","messages":[{"b":"' + b"[{:," * 30 + b'"}]}'
            check_structure(body, limits)
            with pytest.raises(InvalidRequest, match=r"limits\.keys"):
                check_structure(body[:-1] + b',"c":1,"d":2}', limits)


async def test_pieces_are_small_and_all_of_it() -> None:
    """By bytes and by lines; together they are what arrived."""
    for data in (b"x" * 100_000, b"\n" * 50_000, b"data: {}\n\n" * 9_000 + b"y" * 40_000, b": c\r\r" * 3000):
        pieces, seen = Pieces(), []
        assert not fits(data)
        pieces.add(data)
        while pieces:
            seen.append(await pieces.next())
        assert b"".join(seen) == data
        assert all(len(piece) <= PIECE_BYTES for piece in seen)
        assert all(piece.count(b"\n") <= 2 * PIECE_LINES for piece in seen)


async def test_a_piece_ends_with_an_event() -> None:
    """One that is cut costs as much as many that are not."""
    for event in (b"data: {}\n\n", b"event: x\ndata: {}\n\n", b"data: {}\r\n\r\n", b'{"a":1}\n'):
        pieces = Pieces()
        pieces.add(event * (5 * PIECE_BYTES // len(event)) + event[:-1])
        while pieces:
            piece = await pieces.next()
            assert not pieces or (piece.endswith(event) and len(piece) % len(event) == 0)


async def test_many_streams_share_one_budget() -> None:
    """However many have a backlog, the loop has its turn after each piece that took the budget."""
    in_this_turn: list[int] = [0]

    async def work(pieces: Pieces) -> None:
        while pieces:
            await pieces.next()
            in_this_turn[-1] += 1
            until = time.monotonic() + 0.003
            while time.monotonic() < until:
                pass

    def count_turns() -> None:
        in_this_turn.append(0)
        loop.call_soon(count_turns)

    loop = asyncio.get_running_loop()
    backlogs = [Pieces() for _ in range(20)]
    for backlog in backlogs:
        backlog.add(b"x" * 2 * PIECE_BYTES)
    loop.call_soon(count_turns)
    leaving = asyncio.ensure_future(work(backlogs[0]))
    working = [asyncio.ensure_future(work(backlog)) for backlog in backlogs[1:]]
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(*working)
    assert sum(in_this_turn) >= 2 * 19
    assert max(in_this_turn) <= 2


async def test_thousands_of_rows_are_made_in_turns() -> None:
    """Others run after each hundred of them: a list of 20,000 models, asked for by any client, took 250 ms."""
    made = 0

    def rows() -> Iterator[int]:
        nonlocal made
        while made < 1000:
            made += 1
            yield made

    making, seen = asyncio.ensure_future(in_turns(rows())), [0]
    while not making.done():
        await asyncio.sleep(0)
        seen.append(made)
    assert making.result() == list(range(1, 1001))
    assert max(after - before for before, after in pairwise(seen)) <= 200
    assert await in_turns(iter(())) == []


def test_thousands_of_short_texts_are_large() -> None:
    """They are translated in a thread: the loop took 8 ms to write 10,000 of them for Gemini."""
    for number, large in ((10, False), (10_000, True)):
        body = json.dumps({"model": "m", "input": ["a"] * number}).encode()
        assert EmbeddingsDoor().read(body, Client("r"))[0].is_large is large
