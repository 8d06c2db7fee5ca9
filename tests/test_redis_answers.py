"""Answers kept in a real Redis: shared by instances, and missed by nobody while it is not well."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from manallm_proxy.config.load import load
from manallm_proxy.config.state_url import redacted_state_url
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.events import Event, StateChanged
from manallm_proxy.contract.targets import Target
from manallm_proxy.state import link
from manallm_proxy.state.answer_store import CachedAnswer
from manallm_proxy.state.entries import LARGEST, PART, SLOWEST, WriteBehind, read, seal
from manallm_proxy.state.link import AGAIN, Link, ServerUnavailable
from manallm_proxy.state.redis_answers import RedisAnswers, name_of, pack
from manallm_proxy.state.redis_client import LONGEST_WAIT, client_of
from tests.figures import value
from tests.ports import free_port
from tests.proxy import Proxy, openai, proxy, settings, written
from tests.redis_server import PATIENCE, RedisServer, redis_server
from tests.upstreams import answers, each, upstream
from tests.waiting import until

KEY = bytes(range(32))
NAME = name_of(KEY)
KEPT = CachedAnswer(b'{"id":"1"}', Target("up", "m"), "application/json", Usage(3, 2, 1, 1))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


def store(url: str, seen: list[Event] | None = None) -> RedisAnswers:
    return RedisAnswers(Link("redis", client_of(url), (seen if seen is not None else []).append))


async def closed(*stores: RedisAnswers) -> None:
    for each_ in stores:
        await each_.close()
        await each_.link.close()


async def why_down(url: str) -> str | None:
    """As `check --live` asks."""
    asking = Link("redis", client_of(url), lambda event: None)
    try:
        return await asking.why_down(20.0)
    finally:
        await asking.close()


async def kept(answers: RedisAnswers, server: RedisServer, ttl: float = 60.0) -> bytes:
    """What stands in the server once `KEPT` is there."""
    answers.keep(KEY, KEPT, ttl)
    client = server.client()
    await until(lambda: client.exists(NAME))
    await until(lambda: not answers._writing)
    entry: bytes = client.get(NAME)
    return entry


async def test_what_is_kept_is_found_with_its_age(redis: RedisServer) -> None:
    """By another instance too; the age is the server's to tell, not one machine's clock."""
    one, other = store(redis.url), store(redis.url)
    await kept(one, redis)
    found = await other.find(KEY)
    assert found is not None and found.kept == KEPT and 0 <= found.age < 5
    redis.client().pexpire(NAME, 20_000)
    found = await other.find(KEY)
    assert found is not None and 40 <= found.age < 45
    other.drop(KEY)
    await until(lambda: not redis.client().exists(NAME))
    assert await one.find(KEY) is None
    await closed(one, other)


async def test_what_is_not_ours_is_a_miss_and_deleted(redis: RedisServer) -> None:
    """Poisoned, cut short, of another key, of another version, without an end, of another type; never unpickled."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("it was unpickled",))

    seen: list[Event] = []
    answers, client = store(redis.url, seen), redis.client()
    entry = await kept(answers, redis)
    foreign = pack("manallm:1:answer:other", KEPT, 60.0)
    flipped = entry[:-2] + bytes([entry[-2] ^ 1]) + entry[-1:]
    for wrong in (b"x", b"\0" * 100, entry[:-1], entry[:10], entry + b" ", flipped, foreign, b"manallm2" + entry):
        client.set(NAME, wrong, px=60_000)
        assert await answers.find(KEY) is None, wrong
        await until(lambda: not client.exists(NAME))
    client.set(NAME, pickle.dumps(Bomb()), px=60_000)
    assert await answers.find(KEY) is None
    await until(lambda: not client.exists(NAME))
    client.set(NAME, entry)  # without an end
    assert await answers.find(KEY) is None
    await until(lambda: not client.exists(NAME))
    client.set(NAME, entry, px=600_000)  # an end further off than it was given
    assert await answers.find(KEY) is None
    await until(lambda: not client.exists(NAME))
    client.lpush(NAME, "a list")
    assert await answers.find(KEY) is None
    await until(lambda: not client.exists(NAME))
    client.set(NAME, b"x" * (LARGEST + 100), px=60_000)
    assert await answers.find(KEY) is None
    await until(lambda: not client.exists(NAME))
    assert not seen
    await closed(answers)


@define
class Counting:
    """A link that notes how much each use has brought, and what it may take beyond the usual time. ``before``: called
    before the use of that number."""

    link: Link
    before: dict[int, Callable[[], object]] = field(factory=dict)
    sizes: list[int] = field(factory=list)
    mores: list[float] = field(factory=list)
    is_well: bool = True

    async def use(self, command: Callable[[Any], Awaitable[Any]], more: float = 0.0) -> Any:
        self.before.get(len(self.mores), int)()
        self.mores.append(more)
        found = await self.link.use(command, more)
        self.sizes += [len(found[0])] if isinstance(found, list) and found else []
        return found


async def test_a_burst_of_our_own_is_no_failure_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is awaited for as long as this process is busy, within bounds; while it idles, no longer than ever."""
    monkeypatch.setattr(link, "BUDGET", 0.05)
    answered = asyncio.Event()

    async def command(client: object) -> str:
        await answered.wait()
        return "answered"

    async def busy(seconds: float) -> None:
        ends = time.thread_time() + seconds
        while time.thread_time() < ends:
            step = time.thread_time()
            while time.thread_time() - step < 0.01:
                pass
            await asyncio.sleep(0)

    async def used(seconds: float) -> str:
        """What comes of a use while this process is busy for so long, and the answer comes after that."""
        answered.clear()
        using = asyncio.ensure_future(real.use(command))
        await busy(seconds)
        await asyncio.sleep(0.2 if not seconds else 0)
        answered.set()
        try:
            return await using
        except ServerUnavailable:
            return "too late"

    for seconds, wanted in ((0.25, "answered"), (0.8, "too late"), (0.0, "too late")):
        real = Link("redis", asyncio.Event, lambda event: None)  # a client that nobody uses
        assert await used(seconds) == wanted, seconds
        await real.close()


async def test_a_long_entry_is_read_in_parts(redis: RedisServer) -> None:
    """Each in the time of one use, which megabytes do not have on a slow network; a write gets what it needs. One that
    is replaced meanwhile is not there, and neither is it taken for a foreign one and deleted."""
    real = Link("redis", client_of(redis.url), lambda event: None)
    size = 3 * PART + 5
    client = redis.client()
    entry = seal(NAME, b"x" * (size - 16))
    tombstone = seal(NAME, b"deleted")
    counting = Counting(real)
    behind = WriteBehind(counting)  # type: ignore[arg-type]  # a stand-in
    assert behind.send(lambda redis: redis.set(NAME, entry, px=60_000), len(entry))
    await behind.close()
    assert counting.mores == [size / SLOWEST]
    found, left = await read(counting, NAME)  # type: ignore[arg-type]  # a stand-in
    assert (found, 0 < left <= 60_000, counting.sizes) == (entry, True, [PART, PART, PART, 5])
    replaced = Counting(real, {2: lambda: client.set(NAME, tombstone, px=60_000)})
    assert await read(replaced, NAME) == (b"", 0)  # type: ignore[arg-type]  # a stand-in
    assert client.get(NAME) == tombstone
    await real.close()


async def test_two_instances_share_what_they_keep(redis: RedisServer, tmp_path: Path, two: Path) -> None:
    """Under keys that begin with our name and a version, and that expire."""
    config = shared(redis.url)
    async with upstream(each(answers)) as server:
        config["providers"]["up"] = openai(server.url)
        async with proxy(config, tmp_path) as one, proxy(config, two) as other:
            status, first, headers = await one.chat(model="mana/test")
            assert (status, headers["x-mana-llm-cache"]) == (200, "miss")
            assert (await one.chat(model="mana/test"))[2]["x-mana-llm-cache"] == "hit"
            client = redis.client()
            await until(redis.names)
            status, again, headers = await other.chat(model="mana/test")
            assert (status, again, headers["x-mana-llm-cache"]) == (200, first, "hit")
            assert headers["x-mana-llm-resolved"] == "up/m"
            names = redis.names()
            assert [name.startswith(b"manallm:1:") for name in names] == [True]
            assert 0 < client.pttl(names[0]) <= 3_600_000
            assert len(server.posts) == 1


def shared(url: str, **more: Any) -> dict[str, Any]:
    config = settings({"up": openai("http://127.0.0.1:9")}, state=url, **more)
    config["aliases"]["mana/test"]["cache"] = {"ttl": "1h"}
    return config


def lines(gate: Proxy, text: str = "shared state") -> list[dict[str, Any]]:
    return [row for row in map(json.loads, gate.log.getvalue().splitlines()) if text in row["event"]]


def has_told(gate: Proxy, times: int, detail: str = "") -> bool:
    return sum(detail in row.get("detail", "") for row in lines(gate)) == times


async def asked(gate: Proxy, **more: Any) -> tuple[str, float]:
    """What the header says of one chat, and the seconds it took by the loop's clock."""
    clock = asyncio.get_running_loop().time
    began = clock()
    status, _, headers = await gate.chat(model="mana/test", **more)
    assert status == 200
    return headers["x-mana-llm-cache"], clock() - began


async def test_whatever_happens_to_it_no_request_fails(redis: RedisServer, tmp_path: Path) -> None:
    """Stopped, killed, started again: each is a miss meanwhile, told once, and over within a second of its return."""
    async with upstream(each(answers)) as server:
        config = shared(redis.url)
        config["providers"]["up"] = openai(server.url)
        async with proxy(config, tmp_path) as gate:
            assert (await asked(gate))[0] == "miss"
            await until(lambda: redis.client().dbsize())
            assert (await asked(gate))[0] == "hit"
            for harm, mend in ((redis.stop, redis.go_on), (redis.kill, redis.start)):
                before = len(lines(gate))
                harm()
                told = [await asked(gate) for _ in range(20)]
                assert {cache for cache, _ in told} == {"miss"}
                assert max(seconds for _, seconds in told) < 2 * PATIENCE + 0.25  # twice: this process may be busy
                assert sorted(seconds for _, seconds in told)[10] < PATIENCE, "one waits, the others do not"
                await until(partial(has_told, gate, before + 1))
                mend()
                async with asyncio.timeout(AGAIN + 5):  # a second on a machine of one's own
                    while (await asked(gate))[0] != "hit":
                        pass
                await until(partial(has_told, gate, before + 2))
            assert [row["event"] for row in lines(gate)] == ["shared state is away", "shared state is back"] * 2
            assert "redis.sock" in lines(gate)[0]["server"]
            async with gate.client.get(gate.url + "/metrics") as response:
                assert value(await response.text(), "mana_llm_state_changes_total", state="away") == 2


async def test_one_that_never_was_there_is_told_once(tmp_path: Path) -> None:
    """Absent from the start; the start does not wait for it, nor does the end."""
    pytest.importorskip("redis")
    async with upstream(each(answers)) as server:
        config = shared("redis://127.0.0.1:9/0")
        config["providers"]["up"] = openai(server.url)
        async with proxy(config, tmp_path) as gate:
            assert [(await asked(gate))[0] for _ in range(5)] == ["miss"] * 5
            await until(lambda: lines(gate))
            assert [(row["detail"], row["server"]) for row in lines(gate)] == [
                ("cannot be reached", "redis://127.0.0.1:9/0")
            ]


async def test_a_wrong_password_is_told_without_it(tmp_path: Path) -> None:
    """And the right one works; neither is in the log."""
    with redis_server(tmp_path, "open-sesame") as redis:
        async with upstream(each(answers)) as server:
            for password, cache in (("wrong-word", "miss"), (None, "miss"), ("open-sesame", "hit")):
                config = shared(redis.url_with(password))
                config["providers"]["up"] = openai(server.url)
                async with proxy(config, tmp_path) as gate:
                    await asked(gate)
                    if cache == "hit":
                        await until(lambda: redis.client().dbsize())
                    else:
                        await until(partial(has_told, gate, 1, "refuses the user or the password"))
                    assert (await asked(gate))[0] == cache
                    assert "open-sesame" not in gate.log.getvalue() and "wrong-word" not in gate.log.getvalue()


async def test_a_full_server_is_told_and_read_on(tmp_path: Path) -> None:
    """What it does not take is not kept; what it has is still a hit."""
    with redis_server(tmp_path, None, "--maxmemory-policy", "noeviction") as redis:
        seen: list[Event] = []
        answers, client = store(redis.url, seen), redis.client()
        await kept(answers, redis)
        filling = [client.execute_command("SET", f"fill{n}", b"x" * 10_000) for n in range(50)]
        assert all(filling)
        client.config_set("maxmemory", client.info("memory")["used_memory"])
        for n in range(3):
            answers.keep(bytes([n]) * 32, KEPT, 60.0)
        await until(lambda: not answers._writing)
        assert (await answers.find(KEY)) is not None
        assert await answers.find(b"\1" * 32) is None
        assert seen == [StateChanged("redis", is_well=False, detail="refuses our commands (OOM)")]
        await closed(answers)


async def test_no_connection_outlives_its_client(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the budget ends: while they connect, while they ask, while the client is being closed."""
    seen = redis.client().info("stats")["total_connections_received"]
    gc.disable()  # it would close what was forgotten
    try:
        for n in range(30):
            monkeypatch.setattr(link, "BUDGET", n * 0.0003)
            left = Link("redis", client_of(redis.url), lambda _: None)
            uses = (left.use(lambda client: client.get("a")) for _ in range(8))
            for error in await asyncio.gather(*uses, return_exceptions=True):
                assert error is None or isinstance(error, ServerUnavailable)
            await left.close()
        await until(lambda: redis.client().info("clients")["connected_clients"] == 1)
    finally:
        gc.enable()
    assert redis.client().info("stats")["total_connections_received"] > seen + 30


async def test_closing_ends_also_where_a_ping_takes_no_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library may take a cancellation for a failure of its own; then the server is asked no more."""
    monkeypatch.setattr(link, "AGAIN", 60.0)  # no ping ends by itself
    opened: list[Any] = []
    shut: list[Any] = []

    class Deaf:
        pings = 0

        def __init__(self) -> None:
            opened.append(self)

        async def get(self, key: str) -> None:
            raise ConnectionError

        async def ping(self) -> None:
            Deaf.pings += 1
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ConnectionError from None

        async def aclose(self) -> None:
            shut.append(self)

    left = Link("redis", Deaf, lambda _: None)
    with pytest.raises(ServerUnavailable):
        await left.use(lambda client: client.get("a"))
    await until(lambda: Deaf.pings)
    async with asyncio.timeout(2):
        await left.close()
    assert Deaf.pings == 1
    assert {*opened} == {*shut}


async def test_a_refused_password_is_told_also_after_another_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer may only be late: what an operator has to mend is in the log all the same, once."""
    monkeypatch.setattr(link, "AGAIN", 0.01)
    seen: list[Event] = []
    asked = 0

    class Odd:
        async def get(self, key: str) -> None:
            raise ConnectionError

        async def ping(self) -> None:
            nonlocal asked
            asked += 1
            raise TimeoutError if asked == 1 else AuthenticationError

        async def aclose(self) -> None: ...

    class AuthenticationError(Exception):
        """As the library's: classes are recognised by name."""

    left = Link("redis", Odd, seen.append)
    with pytest.raises(ServerUnavailable):
        await left.use(lambda client: client.get("a"))
    await until(lambda: asked > 3)
    await left.close()
    told = ["no answer within 50 ms", "refuses the user or the password"]
    assert seen == [StateChanged("redis", is_well=False, detail=detail) for detail in told]


@pytest.mark.parametrize(
    ("scheme", "path", "wanted"),
    [
        ("redis", "/99", "refuses the number of the database"),
        ("redis+cluster", "", "is no cluster"),
        ("redis+sentinel", "/m", "does not know our commands: is it what the address says?"),
    ],
)
async def test_a_server_of_another_kind_is_said_to_be_one(tmp_path: Path, scheme: str, path: str, wanted: str) -> None:
    """`check --live` names what is wrong, and not a class of the library."""
    port = free_port()
    with redis_server(tmp_path, None, "--port", str(port)):
        assert await why_down(f"{scheme}://127.0.0.1:{port}{path}") == wanted


async def test_what_is_no_redis_is_said_to_be_none() -> None:
    """As a port that is another server's."""

    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(http, "127.0.0.1", 0)
    async with server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await why_down(url) == "what answers there is no Redis"


async def test_many_at_a_time_are_served_by_few_connections(redis: RedisServer) -> None:
    """More lookups than connections wait for their turn, and no crowd is taken for a server that is not well."""
    seen: list[Event] = []
    answers = store(redis.url, seen)
    await kept(answers, redis)
    found = await asyncio.gather(*(answers.find(KEY) for _ in range(500)))
    assert any(each_ is not None for each_ in found)
    await until(lambda: answers.link.is_well)
    assert not seen
    assert redis.client().info("clients")["connected_clients"] < 40
    await closed(answers)


async def test_a_reload_changes_the_server(redis: RedisServer, tmp_path: Path) -> None:
    """From memory to Redis and back, without a request that fails."""
    async with upstream(each(answers)) as server:
        config = shared(redis.url)
        config["providers"]["up"] = openai(server.url)
        without = {key: inner for key, inner in config.items() if key != "state"}
        async with proxy(without, tmp_path) as gate:
            assert [(await asked(gate))[0] for _ in range(2)] == ["miss", "hit"]
            gate.write(config)
            await gate.app.reload()
            assert [(await asked(gate))[0] for _ in range(2)] == ["miss", "hit"]
            assert redis.client().dbsize() == 1
            gate.write(without)
            await gate.app.reload()
            assert [(await asked(gate))[0] for _ in range(2)] == ["miss", "hit"]


WRONG = (
    "http://127.0.0.1",
    "redis://",
    "redis:///0",
    "redis://host:port/0",
    "redis://host/zero",
    "redis+cluster:///x",
    "redis://a,b",
    "redis+cluster://a:1,b:2",
    "redis+sentinel://host:1",
    "redis+sentinel://[::1],[::2]:70000/main",
    "redis+sentinel://[::1/main",
    "unix://",
    "",
)


def test_an_address_that_cannot_be_is_named(tmp_path: Path) -> None:
    """Without its text, which may hold a password."""
    pytest.importorskip("redis")
    path = tmp_path / "proxy.yaml"
    for url in WRONG:
        path.write_text(written({**shared(url)}))
        with pytest.raises(ConfigError) as raised:
            load(path, {})
        assert [mistake.partition(":")[0] for mistake in raised.value.mistakes] == ["state"], url
    for url, shown in (
        ("redis://u:p@h:1/2?x=1", "redis://h:1/2"),
        ("rediss://[::1]", "rediss://[::1]"),
        ("redis+cluster://h", "redis+cluster://h"),
        ("redis+sentinel://h:1,i/main/0", "redis+sentinel://h:1,i/main/0"),
        ("redis+sentinel://:p@[::1],[::2]:1/main?x=1", "redis+sentinel://[::1],[::2]:1/main"),
        ("unix://u:p@/run/r.sock?db=1", "unix:///run/r.sock"),
    ):
        path.write_text(written({**shared(url)}))
        assert load(path, {}).state == url
        assert redacted_state_url(url) == shown
    path.write_text(written({**shared("${REDIS_URL}")}))
    assert load(path, {}).state is None


def test_a_sentinels_address_is_read_in_full() -> None:
    """User and password, several hosts with and without a port, the service and its database."""
    pytest.importorskip("redis")
    for kind, login, secure in (("redis", "u%40:p%2F%40@", False), ("rediss", ":p@", True), ("redis", "", False)):
        master = client_of(f"{kind}+sentinel://{login}one:26380,[::1],two/my%20own/3?client_name=me")()
        sentinel, settings_ = master._sentinel, master._client.connection_pool.connection_kwargs
        places = [each_.connection_pool.connection_kwargs for each_ in sentinel.sentinels]
        assert [(each_["host"], each_["port"]) for each_ in places] == [("one", 26380), ("::1", 26379), ("two", 26379)]
        assert master._client.connection_pool.service_name == "my own"
        assert (settings_["db"], settings_["client_name"]) == (3, "me")
        wanted = {"redis:u%40:p%2F%40@": ("u@", "p/@"), "rediss::p@": (None, "p"), "redis:": (None, None)}
        assert (settings_.get("username"), settings_.get("password")) == wanted[f"{kind}:{login}"]
        connections = {each_.connection_pool.connection_class.__name__ for each_ in sentinel.sentinels}
        assert connections == {"SSLConnection" if secure else "Connection"}
        assert all(each_["socket_timeout"] == LONGEST_WAIT for each_ in (*places, settings_))
