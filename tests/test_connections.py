"""What a client's connection is made of, when that is made and for how long it may wait; and what it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import uvloop
from attrs import define, field

from manallm_proxy.config.model import Limits
from manallm_proxy.http_server import aiohttp_server, web
from manallm_proxy.http_server.aiohttp_server import Handler, Runner, Server
from manallm_proxy.http_server.deadlines import Deadlines
from tests.waiting import until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


async def ok(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="ok")


def runner_of(handler: Handler = ok) -> Runner:
    return Runner(
        Server(handler, header=400, head_timeout=lambda: 5.0, limits=Limits, refusal=lambda error: ("id-1", b"{}"))
    )


@define
class Client:
    """``theirs``: the server's end, while the test keeps it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    theirs: Any

    async def ask(self, data: bytes = GET, answers: int = 1) -> bytes:
        """The last answer."""
        self.writer.write(data)
        answer = b""
        for _ in range(answers):
            answer = await asyncio.wait_for(self.reader.readuntil(b"ok"), 5)
        return answer

    async def rest(self) -> bytes:
        """All until the server closes."""
        return await asyncio.wait_for(self.reader.read(), 5)


@asynccontextmanager
async def clients(runner: Runner) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    """What opens one after the other; closes all, and the server."""
    made: list[Client] = []

    async def opened() -> Client:
        before = set(runner.server.connections)
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        await until(lambda: set(runner.server.connections) - before)
        [connection] = set(runner.server.connections) - before
        made.append(Client(reader, writer, connection))
        return made[-1]

    try:
        yield opened
    finally:
        for each in made:
            each.writer.close()
        await runner.cleanup()


def run(loop: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await main()

    with asyncio.Runner(loop_factory=loop) as each:
        each.run(bounded())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_has_the_listening_sockets_options(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """TCP_NODELAY, else an answer's second write may wait 40 ms; and SO_KEEPALIVE, for clients that are gone."""

    async def main() -> None:
        bound = socket.create_server(("127.0.0.1", 0))
        for passed in (False, True):
            runner = runner_of()
            await (runner.on_socket(bound, 1) if passed else runner.on_address("127.0.0.1", 0, 1))
            async with clients(runner) as opened:
                accepted = (await opened()).theirs.transport.get_extra_info("socket")
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("reset", [False, True])
def test_a_task_from_the_first_request_to_the_end(loop: Callable[[], asyncio.AbstractEventLoop], reset: bool) -> None:
    """None before; one for all requests; it ends by itself. And nothing is left to the garbage collector."""

    async def main() -> None:
        runner = runner_of()
        await runner.on_address("127.0.0.1", 0, 1)
        async with clients(runner) as opened:
            client = await opened()
            assert client.theirs._task_handler is None
            await client.ask(GET + POST, 2)
            task = client.theirs._task_handler
            await client.ask(POST)
            assert task is not None
            assert client.theirs._task_handler is task
            await until(partial(getattr, client.theirs, "_waiter"))
            kind, place, client.theirs = type(client.theirs), id(client.theirs), None
            if reset:
                now = b"\1\0\0\0\0\0\0\0"
                client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            client.writer.close()
            await until(task.done)
            await until(lambda: not runner.server.connections)
            assert not task.cancelled()
            del task
            await until(lambda: not [each for each in gc.get_objects() if type(each) is kind and id(each) == place])

    gc.collect()
    gc.disable()
    try:
        run(loop, main)
    finally:
        gc.enable()


async def test_a_connection_without_a_request_can_be_closed() -> None:
    """By itself, and with its server, as one that waits for another request."""
    runner = runner_of()
    await runner.on_address("127.0.0.1", 0, 1)
    async with clients(runner) as opened:
        first, second, third = [await opened() for _ in range(3)]
        await third.ask()
        first.theirs.close()
        assert await first.rest() == b""
        await runner.cleanup()
        assert await second.rest() == b""
        assert await third.rest() == b""


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of one that is busy ran from its last answer; it runs anew from the next."""
    go = asyncio.Event()

    async def waits(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/slow":
            await go.wait()
        return web.Response(text="ok")

    runner = runner_of(waits)
    await runner.on_address("127.0.0.1", 0, 1)
    async with clients(runner) as opened:
        busy, idle = await opened(), await opened()
        monkeypatch.setattr(aiohttp_server, "KEEP_ALIVE", 0.05)
        await busy.ask(GET + GET.replace(b"/ ", b"/slow "))
        await idle.ask()
        assert await idle.rest() == b""
        go.set()
        assert (await busy.rest()).endswith(b"ok")


async def test_a_silent_connection_has_no_more_time_than_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a head may take."""
    monkeypatch.setattr(aiohttp_server, "KEEP_ALIVE", 0.05)
    runner = runner_of()
    await runner.on_address("127.0.0.1", 0, 1)
    async with clients(runner) as opened:
        silent = await opened()
        assert await asyncio.wait_for(silent.reader.read(), 3) == b""  # a head may take 5 s


async def test_aiohttp_s_own_loop_takes_over_with_its_own_timer() -> None:
    """With a request for another protocol: ours would end the connection in the middle of what follows."""
    runner = runner_of()
    await runner.on_address("127.0.0.1", 0, 1)
    async with clients(runner) as opened:
        client = await opened()
        idle = cast(Server, runner.server).idle
        await client.ask()
        await until(lambda: client.theirs in idle._due)
        await client.ask(GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"))
        await until(lambda: client.theirs._keepalive_handle is not None)
        assert client.theirs not in idle._due
        task = client.theirs._task_handler
        client.writer.close()
        await until(task.done)
        assert task.cancelled(), "its wait takes no end but a request or being cancelled"


async def test_what_is_taken_is_told_by_its_last_request() -> None:
    """The body of the last one whose head is complete; what only belongs to a body, or is half a head, brings none."""
    runner = runner_of()
    await runner.on_address("127.0.0.1", 0, 1)
    async with clients(runner) as opened:
        client = await opened()
        body = client.theirs.take(GET + POST[:-2])
        assert not body.is_eof()
        assert client.theirs.take(b"{") is None
        assert not body.is_eof()
        assert client.theirs.take(b"}" + GET[:9]) is None
        assert body.is_eof()
        assert client.theirs.take(GET[9:]).is_eof()
        await client.ask(b"", 3)


async def test_reading_is_resumed_where_it_was_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long chunked body stops the client until it is read. A short one costs nobody a second look at the parser."""
    taken: list[bytes] = []
    pauses: list[bool] = []

    async def reads(request: web.BaseRequest) -> web.StreamResponse:
        connection: Any = request.protocol
        if request.path == "/long":
            await until(lambda: connection._reading_paused)
            pauses.append(connection.transport.is_reading())
        return web.Response(text=f"{len(await request.read())} ok")

    class Counts(aiohttp_server._Connection):
        __slots__ = ()

        def data_received(self, data: bytes) -> None:
            taken.append(data)
            super().data_received(data)

    monkeypatch.setattr(aiohttp_server, "_Connection", Counts)
    runner = runner_of(reads)
    await runner.on_address("127.0.0.1", 0, 1)
    async with clients(runner) as opened:
        client = await opened()
        assert (await client.ask(POST)).endswith(b"2 ok")
        assert taken == [POST]
        part = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        long = b"POST /long HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + 12 * part + b"0\r\n\r\n"
        assert (await client.ask(long)).endswith(b"%d ok" % (12 * 0x10000))
        assert pauses == [False]


async def test_no_names_are_asked_for() -> None:
    """``ssl_context``, ``peername`` and ``sockname``: a request has none, its transport has."""
    seen: list[Any] = []

    async def looks(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        seen.append((request.remote, request.secure, request.transport.get_extra_info("peername")[0]))
        return web.Response(text="ok")

    runner = runner_of(looks)
    await runner.on_address("127.0.0.1", 0, 1)
    async with clients(runner) as opened:
        await (await opened()).ask()
    assert seen == [(None, False, "127.0.0.1")]


@define
class Clock:
    """An event loop's, as far as `Deadlines` goes."""

    now: float = 0.0
    timers: list[tuple[float, Callable[[], None]]] = field(factory=list)
    soon: list[str] = field(factory=list)

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> object:
        self.timers.append((when, call))
        return object()

    def call_soon(self, call: Callable[[str], None], who: str) -> None:
        self.soon.append(who)

    def pass_to(self, now: float) -> list[str]:
        """Who was overdue until then."""
        while self.timers and self.timers[0][0] <= now:
            self.now, call = self.timers.pop(0)
            call()
        self.now = now
        over, self.soon = self.soon, []
        return over


def test_one_timer_serves_all_who_wait() -> None:
    """In the order in which they are due; none if nobody waits; and again after that."""
    clock = Clock()
    seconds = 10.0
    waits: Deadlines[str] = Deadlines(lambda: seconds, print, loop=cast(asyncio.AbstractEventLoop, clock))
    for each in "abcd":
        waits.begin(each)
        clock.now += 1
    assert len(clock.timers) == 1
    waits.end("b")
    waits.end("nobody")
    waits.begin("a")  # anew, at 4
    assert clock.pass_to(11.5) == []
    assert clock.pass_to(12) == ["c"]
    assert clock.pass_to(14) == ["d", "a"]
    assert clock.timers == []
    clock.now, seconds = 20.0, 5.0
    waits.begin("e")
    assert [when for when, _ in clock.timers] == [25.0]
    assert clock.pass_to(25) == ["e"]


def test_of_many_who_wait_only_those_that_are_due_are_looked_at() -> None:
    """Else a thousand that leave one after the other are a million looks."""
    looked: list[str] = []

    class Waiting(dict[str, float]):
        def items(self) -> Any:
            for each in super().items():
                looked.append(each[0])
                yield each

    clock = Clock()
    waits: Deadlines[str] = Deadlines(lambda: 10.0, print, loop=cast(asyncio.AbstractEventLoop, clock))
    waits._due = Waiting()
    for number in range(1000):
        waits.begin(str(number))
        clock.now += 0.001
    assert clock.pass_to(10.0) == ["0"]
    assert looked == ["0", "1"]
