"""What /v1/responses keeps, shared by instances through a real Redis."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define, field

from manallm_proxy.doors.responses.not_found import NotLookedUp
from manallm_proxy.doors.responses.store import Bounds, MemoryStore, Stored
from manallm_proxy.gateway.shared_responses import SharedResponses
from manallm_proxy.state.link import AT_A_TIME, Link
from manallm_proxy.state.redis_client import client_of
from tests.ports import free_port
from tests.proxy import Proxy, openai, proxy, settings
from tests.redis_server import RedisServer, redis_server
from tests.upstreams import answers, each, upstream
from tests.waiting import until


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


async def test_responses_are_found_by_every_instance(redis: RedisServer, tmp_path: Path, two: Path) -> None:
    """A conversation goes on at another instance, whose clients' keys may differ; a deleted one is gone everywhere."""
    async with upstream(each(answers)) as server:
        config = settings({"up": openai(server.url)}, state=redis.url)
        async with proxy(config, tmp_path) as one, proxy(config, two) as other:
            status, first, _ = await one.post("/v1/responses", {"input": "a"})
            assert status == 200
            await until(lambda: redis.client().dbsize() == 2)
            status, _, _ = await other.post("/v1/responses", {"input": "b", "previous_response_id": first["id"]})
            assert status == 200
            said = [message["content"] for message in server.posts[-1].json["messages"]]
            assert said == ["a", "Hello", "b"]
            item = {"type": "item_reference", "id": first["output"][0]["id"]}
            assert (await other.post("/v1/responses", {"input": [item, {"role": "user", "content": "c"}]}))[0] == 200
            assert (await other.get(f"/v1/responses/{first['id']}"))[1]["output"] == first["output"]
            async with other.client.delete(f"{other.url}/v1/responses/{first['id']}") as response:
                assert response.status == 200
            await until(lambda: any(b"deleted" in (redis.client().get(n) or b"") for n in redis.names()))
            assert (await one.get(f"/v1/responses/{first['id']}"))[0] == 404
            redis.stop()
            status, told = await one.get(f"/v1/responses/{first['id']}")
            assert (status, told["error"]["code"]) == (503, "overloaded"), "it is no longer kept there either"
            status, third, _ = await one.post("/v1/responses", {"input": "d"})
            assert status == 200
            assert (await one.post("/v1/responses", {"input": "e", "previous_response_id": third["id"]}))[0] == 200
            redis.go_on()
            names = redis.names()
            assert all(name.startswith(b"manallm:1:") and 0 < redis.client().pttl(name) <= 3_600_000 for name in names)
            assert not any(first["id"].encode() in name for name in names)


async def test_a_response_that_is_poisoned_is_unknown(redis: RedisServer, tmp_path: Path, two: Path) -> None:
    """Also to the instance that kept none of its own; what stood there is deleted."""
    async with upstream(each(answers)) as server:
        config = settings({"up": openai(server.url)}, state=redis.url)
        async with proxy(config, tmp_path) as one, proxy(config, two) as other:
            _, first, _ = await one.post("/v1/responses", {"input": "a"})
            client = redis.client()
            await until(lambda: client.dbsize() == 2)
            for name in redis.names():
                client.set(name, b"x" * 40, px=60_000)
            body = {"input": "b", "previous_response_id": first["id"]}
            assert (await other.post("/v1/responses", body))[0] in (400, 404)
            assert (await one.post("/v1/responses", {**body, "store": False}))[0] == 200
            await until(lambda: not any(b":response:" in name for name in redis.names()))


async def deleted(p: Proxy, id_: str) -> int:
    async with p.client.delete(f"{p.url}/v1/responses/{id_}") as response:
        return response.status


async def test_a_deleted_response_stays_deleted_whatever_is_on_its_way(redis: RedisServer, tmp_path: Path) -> None:
    """Deleted as soon as it is answered, while megabytes of it are still being written."""
    async with upstream(each(answers)) as server:
        async with proxy(settings({"up": openai(server.url)}, state=redis.url), tmp_path) as p:
            for _ in range(3):
                body = io.BytesIO(json.dumps({"input": "x" * 3_000_000}).encode())
                async with p.client.post(f"{p.url}/v1/responses", data=body) as response:
                    made = await response.json()
                assert await deleted(p, made["id"]) == 200
                behind = p.app.gateway.shared._behind
                assert behind is not None
                await asyncio.gather(*behind._tasks)
                await until(lambda: any(b"deleted" in (redis.client().get(name) or b"") for name in redis.names()))
                assert (await p.get(f"/v1/responses/{made['id']}"))[0] == 404
                redis.client().flushall()


async def test_a_cluster_drops_what_is_deleted_also_where_it_is_full(tmp_path: Path, two: Path) -> None:
    """Where the library's pipeline has no UNLINK of its own."""
    port = free_port()
    with redis_server(tmp_path, None, "--port", str(port), "--cluster-enabled", "yes") as redis:
        redis.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await until(lambda: redis.client().cluster("INFO")["cluster_state"] == "ok")
        async with upstream(each(answers)) as server:
            config = settings({"up": openai(server.url)}, state=f"redis+cluster://127.0.0.1:{port}")
            async with proxy(config, tmp_path) as one, proxy(config, two) as other:
                id_ = (await one.post("/v1/responses", {"input": "a"}))[1]["id"]
                await until(lambda: redis.client().dbsize() == 2)
                assert (await other.get(f"/v1/responses/{id_}"))[0] == 200
                redis.client().config_set("maxmemory", 1)
                assert await deleted(one, id_) == 200
                await until(lambda: "refuses our commands (OOM)" in one.log.getvalue())
                assert (await other.get(f"/v1/responses/{id_}"))[0] == 404
                redis.client().config_set("maxmemory", 0)
                await until(lambda: not one.app.gateway.shared._deleted)


async def test_what_is_deleted_while_the_server_is_away_is_deleted_there_too(
    redis: RedisServer, tmp_path: Path, two: Path
) -> None:
    """Once it is back; for all instances, also where it refuses what takes room, and where this process ends soon."""
    async with upstream(each(answers)) as server:
        config = settings({"up": openai(server.url)}, state=redis.url)
        async with proxy(config, two) as other:
            async with proxy(config, tmp_path) as one:
                made = [(await one.post("/v1/responses", {"input": "a"}))[1]["id"] for _ in range(2)]
                await until(lambda: redis.client().dbsize() == 4)
                redis.stop()
                assert [await deleted(one, id_) for id_ in made] == [200, 200]
                assert (await one.get(f"/v1/responses/{made[0]}"))[0] == 404
                redis.go_on()
                assert (await one.get(f"/v1/responses/{made[0]}"))[0] == 404
                await until(lambda: not one.app.gateway.shared._deleted)
                assert [(await other.get(f"/v1/responses/{id_}"))[0] for id_ in made] == [404, 404]
                last = (await one.post("/v1/responses", {"input": "b"}))[1]["id"]
                await until(lambda: redis.client().dbsize() == 6)
                redis.client().config_set("maxmemory", 1)
                assert await deleted(one, last) == 200
                await until(lambda: "refuses our commands (OOM)" in one.log.getvalue())
                assert (await other.get(f"/v1/responses/{last}"))[0] == 404
                redis.client().config_set("maxmemory", 0)
            assert (await other.get(f"/v1/responses/{last}"))[0] == 404


async def test_what_many_items_stand_for_is_asked_together(redis: RedisServer, tmp_path: Path, two: Path) -> None:
    """Reasoning that a client sends back without its data, with each turn: one after the other would take as many round
    trips to the server."""
    async with upstream(each(answers)) as server:
        config = settings({"up": openai(server.url)}, state=redis.url)
        async with proxy(config, tmp_path) as one, proxy(config, two) as other:
            made = [(await one.post("/v1/responses", {"input": "a"}))[1] for _ in range(3)]
            await until(lambda: redis.client().dbsize() == 6)
            before = len(redis.client().client_list())
            items = [{"type": "reasoning", "id": f"rs_{n}", "summary": []} for n in range(20)]
            items += [{"type": "item_reference", "id": each["output"][0]["id"]} for each in made]
            body = {"input": [*items, {"role": "user", "content": "b"}], "store": False}
            assert (await other.post("/v1/responses", body))[0] == 200
            assert [message["content"] for message in server.posts[-1].json["messages"]] == ["Hello\nHello\nHello", "b"]
            assert len(redis.client().client_list()) - before > AT_A_TIME // 2  # connections, each with one at a time


async def test_what_only_the_server_has_is_not_unknown_while_it_is_away(
    redis: RedisServer, tmp_path: Path, two: Path
) -> None:
    """A client would give up its conversation, and no SDK tries a 400 or a 404 again; they do so with a 503."""
    async with upstream(each(answers)) as server:
        config = settings({"up": openai(server.url)}, state=redis.url)
        async with proxy(config, tmp_path) as one, proxy(config, two) as other:
            made = (await one.post("/v1/responses", {"input": "a"}))[1]
            await until(lambda: redis.client().dbsize() == 2)
            redis.stop()
            reference = {"type": "item_reference", "id": made["output"][0]["id"]}
            user = {"role": "user", "content": "b"}
            bodies = ({"input": "b", "previous_response_id": made["id"]}, {"input": [reference, user]})
            for body in bodies:
                status, told, headers = await other.post("/v1/responses", body)
                assert (status, headers["retry-after"]) == (503, "1"), told
                assert "the Redis that 'state' names does not answer now" in told["error"]["message"]
            assert await deleted(other, made["id"]) == 503
            reasoning = {"type": "reasoning", "id": "rs_1", "summary": []}
            assert (await other.post("/v1/responses", {"input": [reasoning, user]}))[0] == 200
            redis.go_on()
            await until(lambda: other.app.generation.answers.link.is_well)  # type: ignore[union-attr]  # it is there
            for body in bodies:
                assert (await other.post("/v1/responses", body))[0] == 200
            assert await deleted(other, made["id"]) == 200
            assert (await other.post("/v1/responses", bodies[0]))[0] == 400


@define(eq=False)
class Instance:
    """One of those that share a server: its own store, its link, and what it has deleted."""

    link: Link
    own: MemoryStore = field(init=False)
    store: SharedResponses = field(init=False)
    deleted: set[str] = field(factory=set)

    def __attrs_post_init__(self) -> None:
        self.own = MemoryStore(asyncio.get_running_loop().time)
        self.store = SharedResponses(self.own, lambda: self.link, Bounds)

    async def found(self, owner: str, one: Stored) -> bool:
        """Whether it has `one`, all of it or nothing, also by reference to its items; False where it cannot tell."""
        try:
            whole = await self.store.response(owner, one.id)
        except NotLookedUp:
            whole = None
        assert whole is None or whole == one
        items = await self.store.items(owner, one.output_ids)
        assert items == (dict(zip(one.output_ids, one.output, strict=True)) if items else {})
        return whole is not None

    async def written(self) -> None:
        if self.store._behind is not None:
            await asyncio.gather(*self.store._behind._tasks)

    async def settle(self) -> None:
        """All that is on its way has arrived."""
        await self.written()
        await until(lambda: not self.store._deleted)


@pytest.mark.parametrize("seed", range(3))
async def test_walks_over_what_two_instances_keep(seed: int, redis: RedisServer) -> None:
    """Kept, found, deleted, in any order, the server away now and then: each finds what it has, whole; nobody what is
    another's; and nobody what was deleted, once that has got about."""
    chance = random.Random(seed)
    both = [Instance(Link("redis", client_of(redis.url), lambda event: None)) for _ in range(2)]
    kept: dict[str, tuple[str, Stored, Instance, bool]] = {}
    gone: dict[str, tuple[str, Stored]] = {}
    for _ in range(80):
        at, owner = chance.choice(both), chance.choice("ab")
        match chance.choice(("keep", "keep", "find", "find", "find", "delete", "away", "settle")):
            case "keep":
                id_, size = at.store.new_id("resp"), chance.choice((2, 2, 300_000))
                one = Stored(id_, b"{}", (b'"%b"' % (b"x" * size),), (b"1", b"2"), (f"{id_}/1", f"{id_}/2"))
                at.store.keep(owner, one)
                kept[id_] = owner, one, at, at.link.is_well
            case "find" if kept:
                whose, one, keeper, _ = kept[chance.choice([*kept])]
                assert await at.found(owner, one) or owner != whose or at is not keeper
                assert not (owner != whose and await at.found(owner, one))
            case "delete" if kept:
                whose, one, keeper, _ = kept[id_ := chance.choice([*kept])]
                try:
                    done = await at.store.drop(owner, id_)
                except NotLookedUp:
                    assert not at.link.is_well and (at is not keeper or owner != whose)
                    continue
                assert done or owner != whose or at is not keeper
                assert not done or owner == whose
                if done:
                    gone[id_] = whose, one
                    del kept[id_]
                    at.deleted.add(id_)
            case "away":
                await at.written()  # what is not is kept by one instance alone
                at.link.is_well = not at.link.is_well
            case "settle":
                for each_ in both:
                    each_.link.is_well = True
                for each_ in both:
                    await each_.settle()
                for whose, one in gone.values():
                    assert not any([await each_.found(whose, one) for each_ in both])
                for whose, one, _, is_shared in kept.values():
                    assert all([await each_.found(whose, one) for each_ in both]) or not is_shared
        for id_ in at.deleted:
            assert not await at.found(*gone[id_])
    for each_ in both:
        await each_.store.close()
        await each_.link.close()
