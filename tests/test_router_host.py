"""A llama-server in router mode: what is not loaded is loaded by us, and is no outage; other servers are left alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Upstream, answers, each, upstream
from tests.waiting import until

RESOLVED = "x-mana-llm-resolved"


@define(eq=False)
class Router:
    """``state``: of its one model. A load takes until `finish`, or fails where `fails`."""

    state: str = "unloaded"
    fails: bool = False
    loads: int = 0
    lists: int = 0
    busy: int = 0
    """So many times it has no room for another model."""
    plain: bool = False
    """It is another server, whose list has no such word."""
    server: Upstream = field(init=False)

    def finish(self) -> None:
        self.state = "failed" if self.fails else "loaded"

    async def script(self, connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if seen.path == "/v1/models":
                self.lists += 1
                row: dict[str, Any] = {"id": "m", "object": "model", "meta": {"n_ctx": 1024, "size": 96_576_768}}
                status: dict[str, Any] = {"value": self.state, "args": []}
                if self.state == "failed":
                    status = {"value": "unloaded", "args": [], "exit_code": 1, "failed": True}
                row |= {} if self.plain else {"status": status}
                await connection.reply({"object": "list", "data": [row]})
            elif seen.path == "/models/load":
                assert json.loads(seen.body) == {"model": "m"}
                if self.busy:
                    self.busy -= 1
                    said = {"code": 500, "message": "model limit reached, try again later", "type": "server_error"}
                    await connection.reply({"error": said}, "500 Internal Server Error")
                    continue
                if self.state in ("loading", "loaded"):
                    said = {"code": 400, "message": "model is already running", "type": "invalid_request_error"}
                    await connection.reply({"error": said}, "400 Bad Request")
                    continue
                self.loads += 1
                self.state = "loading"
                await connection.reply({"success": True})
            elif seen.method == "GET":
                await connection.reply({"error": {"code": 404, "message": "File Not Found"}}, "404 Not Found")
            else:
                await answers(connection, seen)


@asynccontextmanager
async def router(**more: Any) -> AsyncIterator[Router]:
    made = Router(**more)
    async with upstream(made.script) as server:
        made.server = server
        yield made


@pytest.mark.parametrize("cold", ["next", "wait"])
async def test_what_is_not_loaded_is_loaded(cold: str, tmp_path: Path) -> None:
    """Once, however many ask; the next entry answers meanwhile, or the request waits."""
    async with router() as box, upstream(each(answers)) as cloud:
        providers = {"box": openai(box.server.url, local=True), "cloud": openai(cloud.url)}
        chain = [{"target": "box/m", "cold": cold}, "cloud/m"]
        async with proxy(settings(providers, chain), tmp_path) as p:
            if cold == "next":
                answered = [headers[RESOLVED] for _, _, headers in [await p.chat(), await p.chat()]]
                assert answered == ["cloud/m", "cloud/m"]
                await until(lambda: box.loads == 1)
            else:
                asking = [asyncio.ensure_future(p.chat()) for _ in range(3)]
                await until(lambda: box.loads == 1)
            box.finish()
            if cold == "next":
                await until(lambda: p.app.gateway.generation.local.boxes.boxes["box"].residency.residents)
            else:
                assert {headers[RESOLVED] for _, _, headers in await asyncio.gather(*asking)} == {"box/m"}
            assert (await p.chat())[2][RESOLVED] == "box/m"
            assert box.loads == 1
            row = (await p.get("/v1/health"))[1]["providers"]["box"]
            assert (row["status"], row["targets"]["m"]["loaded"]) == ("healthy", True)


async def test_a_load_that_fails_rests(tmp_path: Path) -> None:
    """The next entry answers, and the server is not asked for it again at once."""
    async with router(fails=True) as box, upstream(each(answers)) as cloud:
        providers = {"box": openai(box.server.url, local=True), "cloud": openai(cloud.url)}
        async with proxy(settings(providers), tmp_path) as p:
            asking = asyncio.ensure_future(p.chat())
            await until(lambda: box.loads == 1)
            box.finish()
            assert (await asking)[2][RESOLVED] == "cloud/m"
            for _ in range(3):
                assert (await p.chat())[2][RESOLVED] == "cloud/m"
            assert box.loads == 1


async def test_a_load_that_another_client_began_is_waited_for(tmp_path: Path) -> None:
    """The server answers 400 then, that the model is running already (build 11434), which is no failure."""
    async with router() as box:
        async with proxy(settings({"box": openai(box.server.url, local=True)}), tmp_path) as p:
            box.state = "loading"
            asking = asyncio.ensure_future(p.chat())
            await until(lambda: any(seen.path == "/models/load" for seen in box.server.seen))
            box.finish()
            assert (await asking)[2][RESOLVED] == "box/m"
            assert (box.loads, "model load failed" in p.log.getvalue()) == (0, False)


async def test_a_model_that_has_to_make_room_has_not_failed(tmp_path: Path) -> None:
    """It was loaded, and another one came: the request is sent, and the server loads it again."""
    async with router() as box:
        async with proxy(settings({"box": openai(box.server.url, local=True)}), tmp_path) as p:
            asking = asyncio.ensure_future(p.chat())
            await until(lambda: box.loads == 1)
            seen = box.lists
            await until(lambda: box.lists > seen)
            box.state = "unloaded"
            assert (await asking)[2][RESOLVED] == "box/m"
            assert "model load failed" not in p.log.getvalue()


async def test_a_server_without_room_is_asked_until_it_has_some(tmp_path: Path) -> None:
    """Its other model is at work, or being loaded, which is no failure of this one's load."""
    async with router(busy=1) as box:
        async with proxy(settings({"box": openai(box.server.url, local=True)}), tmp_path) as p:
            asking = asyncio.ensure_future(p.chat())
            await until(lambda: box.loads == 1 or asking.done())
            box.finish()
            assert (await asking)[2][RESOLVED] == "box/m"
            assert (box.busy, box.loads, "model load failed" in p.log.getvalue()) == (0, 1, False)


async def test_another_server_is_left_alone(tmp_path: Path) -> None:
    """No load, no line in the log, and no look any more after a few."""
    async with router(plain=True) as box:
        async with proxy(settings({"box": openai(box.server.url, local=True)}), tmp_path) as p:
            for _ in range(4):
                assert (await p.chat())[2][RESOLVED] == "box/m"
            looks = p.app.gateway.generation.local.boxes.boxes["box"]
            for _ in range(3):
                await looks.refresh()
            assert looks.residency.observe_in(looks.clock()) > 100
            assert (box.loads, "not told" in p.log.getvalue()) == (0, False)
            assert (await p.get("/v1/health"))[1]["providers"]["box"]["targets"]["m"]["loaded"] is None
