"""A scripted Ollama on a box of its own, which loads models as the real one does.

A model that is not loaded, or loaded with another window, is loaded first, until the test lets it finish. The load
belongs to the request that began it: where that one leaves, it is aborted, and who waited begins another from zero.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from attrs import define, field

from tests.upstreams import Connection, Seen, Upstream, upstream

GIB = 2**30


@define(eq=False)
class Box:
    """``begun``, ``finished``, ``aborted``: the loads by model. A model in `slow` loads until `finish` is called."""

    server: Upstream = field(init=False)
    slow: set[str] = field(factory=set)
    failing: set[str] = field(factory=set)
    loaded: dict[str, dict[str, Any]] = field(factory=dict)
    vram: float = 1.0
    begun: list[str] = field(factory=list)
    finished: list[str] = field(factory=list)
    aborted: list[str] = field(factory=list)
    ps: bytes | None = None
    """What ``/api/ps`` answers instead of the truth."""
    ps_asked: int = 0
    hangs: bool = False
    """``/api/ps`` never answers."""
    mute: bool = False
    """Loaded, and says nothing."""
    answers: asyncio.Event = field(factory=asyncio.Event)
    """While it is clear, answers do not begin."""
    ends: asyncio.Event = field(factory=asyncio.Event)
    """While it is clear, streams do not go on after their first word."""
    bytes_per_token: int = 0
    """0: each prompt has three tokens."""
    picture_tokens: int = 0
    """What each picture adds."""
    slots: int = 0
    """How many it answers at a time, in the order in which they came; the others wait inside it. 0: all."""
    waited: int = 0
    """The most that waited inside it at a time."""
    at_once: int = 0
    most: int = 0
    """Chats that it answers, and the most at a time."""
    _queue: list[asyncio.Future[None]] = field(factory=list)
    _loads: dict[str, asyncio.Future[bool]] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.answers.set()
        self.ends.set()

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def chats(self) -> list[Seen]:
        return [seen for seen in self.server.posts if seen.path != "/api/generate"]

    def provider(self, **more: Any) -> dict[str, Any]:
        return {"kind": "ollama", "base_url": self.url, "local": True, **more}

    def finish(self, model: str) -> None:
        """Its load is done, and so will be all later ones at once."""
        self.slow.discard(model)
        if (load := self._loads.get(model)) is not None and not load.done():
            load.set_result(True)

    def put(self, model: str, window: int = 4096) -> None:
        """As if it had been loaded before."""
        vram = int(8 * GIB * self.vram)
        self.loaded[model] = {"name": model, "model": model, "size": 8 * GIB, "size_vram": vram}
        self.loaded[model] |= {"context_length": window, "expires_at": "2318-01-01T00:00:00Z"}

    async def script(self, connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if seen.path == "/api/ps":
                self.ps_asked += 1
                if self.hangs:
                    await connection.gone()
                    return
                rows = {"models": list(self.loaded.values())}
                await connection.reply(rows if self.ps is None else self.ps)
            elif seen.method == "GET":
                await connection.upstream.probe(connection)
            elif await self._load(connection, seen):
                await self._answer(connection, seen)

    async def _load(self, connection: Connection, seen: Seen) -> bool:
        """Whether the model is loaded now; else the request has been answered, or its client has left."""
        asked = seen.json
        model, window = asked["model"], (asked.get("options") or {}).get("num_ctx", 4096)
        while self.loaded.get(model, {}).get("context_length") != window:
            load = self._loads.get(model)
            own = load is None
            if load is None:
                load = self._loads[model] = asyncio.get_running_loop().create_future()
                self.begun.append(model)
                if model not in self.slow:
                    load.set_result(model not in self.failing)
            gone = asyncio.ensure_future(connection.gone())
            waits: list[asyncio.Future[Any]] = [load, gone]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            if load.done() and own:
                del self._loads[model]
                if not load.result():
                    await connection.reply({"error": "llama runner failed to load"}, "500 Internal Server Error")
                    return False
                self.finished.append(model)
                self.put(model, window)
            elif not load.done():
                if own:
                    self.aborted.append(model)
                    del self._loads[model]
                    load.set_result(False)
                return False
            else:
                await asyncio.sleep(0)
        return True

    async def _turn(self, connection: Connection) -> bool:
        """Whether its turn came, and it has its slot; else its client left."""
        if not self.slots or self.at_once < self.slots:
            self.at_once += 1
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self.waited = max(self.waited, len(self._queue))
        gone = asyncio.ensure_future(connection.gone())
        waits: list[asyncio.Future[Any]] = [turn, gone]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        if not turn.done():
            self._queue.remove(turn)
        return turn.done()

    async def _answer(self, connection: Connection, seen: Seen) -> None:
        if not await self._turn(connection):
            return
        self.most = max(self.most, self.at_once)
        try:
            if not self.answers.is_set():
                await self._until(self.answers, connection)
            await self._say(connection, seen)
        finally:
            if self._queue:
                self._queue.pop(0).set_result(None)  # the slot is handed on
            else:
                self.at_once -= 1

    @staticmethod
    async def _until(event: asyncio.Event, connection: Connection) -> None:
        """Or until its client leaves."""
        waits = [asyncio.ensure_future(each) for each in (event.wait(), connection.gone())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    async def _say(self, connection: Connection, seen: Seen) -> None:
        asked = seen.json
        done = dict(_DONE)
        if self.bytes_per_token:
            pictures = [each for message in asked.get("messages", ()) for each in message.get("images", ())]
            words = len(seen.body) - sum(map(len, pictures))
            done["prompt_eval_count"] = words // self.bytes_per_token + self.picture_tokens * len(pictures)
        if seen.path == "/api/generate" and not asked.get("prompt"):
            await connection.reply({"model": asked["model"], "response": "", "done": True, "done_reason": "load"})
        elif self.mute:
            await connection.gone()
        elif "input" in asked:
            await connection.reply({"model": asked["model"], "embeddings": [[0.5]] * len(asked["input"])})
        elif asked.get("stream") is False:
            await connection.reply({**_line("Hello"), **done})
        else:
            await connection.head(content_type="application/x-ndjson")
            for n, row in enumerate((_line("Hel"), _line("lo"), {**_line(""), **done})):
                if n and not self.ends.is_set():
                    await self._until(self.ends, connection)
                await connection.chunk(json.dumps(row).encode() + b"\n")
            await connection.end()


_DONE = {"done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2}


def _line(text: str) -> dict[str, Any]:
    return {"model": "m", "message": {"role": "assistant", "content": text}, "response": text, "done": False}


@asynccontextmanager
async def box(*models: str) -> AsyncIterator[Box]:
    """One on a port of its own, with `models` installed."""
    made = Box()
    async with upstream(made.script, list(models or ("m",))) as server:
        made.server = server
        yield made
