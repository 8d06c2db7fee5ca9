"""What /v1/responses keeps, shared by instances through a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proxy import openai, proxy, settings
from tests.redis_server import RedisServer, redis_server
from tests.upstreams import answers, each, upstream
from tests.waiting import until


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


async def test_responses_are_found_by_every_instance(redis: RedisServer, tmp_path: Path) -> None:
    """A conversation goes on at another instance, whose clients' keys may differ; a deleted one is gone everywhere."""
    two = tmp_path / "two"
    two.mkdir()
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
            status, third, _ = await one.post("/v1/responses", {"input": "d"})
            assert status == 200
            assert (await one.post("/v1/responses", {"input": "e", "previous_response_id": third["id"]}))[0] == 200
            redis.go_on()
            names = redis.names()
            assert all(name.startswith(b"manallm:1:") and 0 < redis.client().pttl(name) <= 3_600_000 for name in names)
            assert not any(first["id"].encode() in name for name in names)


async def test_a_response_that_is_poisoned_is_unknown(redis: RedisServer, tmp_path: Path) -> None:
    """Also to the instance that kept none of its own; what stood there is deleted."""
    two = tmp_path / "two"
    two.mkdir()
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
