"""A scripted llama-server in router mode, with one model ``m``; see `manallm_proxy.providers.openai.router_host`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from attrs import define, field

from tests.upstreams import Connection, Seen, Upstream, answers, upstream


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
    aliases: tuple[str, ...] = ()
    slots: int = 0
    """What ``/props`` says of the loaded model; 0: nothing."""
    props_fail: int = 0
    """So many times ``/props`` answers that it is loading."""
    props: int = 0
    woken: int = 0
    at_once: int = 0
    most: int = 0
    """Chats that it answers, and the most at a time."""
    answers: asyncio.Event = field(factory=asyncio.Event)
    """While it is clear, chats are not answered."""
    server: Upstream = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.answers.set()

    def finish(self) -> None:
        self.state = "failed" if self.fails else "loaded"

    async def script(self, connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            path = seen.path.partition("?")[0]
            if path == "/v1/models":
                await self._list(connection)
            elif path == "/models/load":
                await self._load(connection, seen)
            elif path == "/props":
                await self._props(connection)
            elif path == "/slots":
                self.woken += 1
                self.state = "loaded" if self.state == "sleeping" else self.state
                await connection.reply(b"[]")
            elif seen.method == "GET":
                await connection.reply({"error": {"code": 404, "message": "File Not Found"}}, "404 Not Found")
            else:
                await self._chat(connection, seen)

    async def _list(self, connection: Connection) -> None:
        self.lists += 1
        row: dict[str, Any] = {"id": "m", "object": "model", "meta": {"n_ctx": 1024, "size": 96_576_768}}
        status: dict[str, Any] = {"value": self.state, "args": []}
        if self.state == "failed":
            status = {"value": "unloaded", "args": [], "exit_code": 1, "failed": True}
        row |= {} if self.plain else {"status": status}
        row |= {"aliases": list(self.aliases)} if self.aliases else {}
        await connection.reply({"object": "list", "data": [row]})

    async def _load(self, connection: Connection, seen: Seen) -> None:
        assert json.loads(seen.body)["model"] in ("m", *self.aliases)
        if self.busy:
            self.busy -= 1
            said = {"code": 500, "message": "model limit reached, try again later", "type": "server_error"}
            await connection.reply({"error": said}, "500 Internal Server Error")
        elif self.state in ("loading", "loaded", "sleeping"):
            said = {"code": 400, "message": "model is already running", "type": "invalid_request_error"}
            await connection.reply({"error": said}, "400 Bad Request")
        else:
            self.loads += 1
            self.state = "loading"
            await connection.reply({"success": True})

    async def _props(self, connection: Connection) -> None:
        self.props += 1
        if self.props_fail:
            self.props_fail -= 1
            said = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
            await connection.reply({"error": said}, "503 Service Unavailable")
        elif self.slots and (self.plain or self.state == "loaded"):
            await connection.reply({"total_slots": self.slots})
        else:
            await connection.reply({"role": "router"})

    async def _chat(self, connection: Connection, seen: Seen) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.answers.wait()
            await answers(connection, seen)
        finally:
            self.at_once -= 1


@asynccontextmanager
async def router(**more: Any) -> AsyncIterator[Router]:
    made = Router(**more)
    async with upstream(made.script) as server:
        made.server = server
        yield made
