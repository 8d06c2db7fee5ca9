"""A box with one GPU, as a provider and as a host of models; and a cloud that always answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from attrs import define, field

from bench.simulation.day import Asked
from manallm_proxy.contract.answers import Answer, Delta, StreamBatch, Usage
from manallm_proxy.contract.provider import Call, ModelList, TryWrite
from manallm_proxy.contract.provider_errors import FirstByteTimeout, ProviderError
from manallm_proxy.contract.residents import Resident
from manallm_proxy.contract.targets import Entry

LOAD: Final = 20.0
"""Seconds to load the model."""
KEEP_ALIVE: Final = 300.0
"""Seconds after its last answer at which it is unloaded."""
CLOUD_FIRST: Final = 0.6
"""Seconds to the cloud's first byte."""
WINDOW: Final = 32_768
SIZE: Final = 8 * 2**30


def now() -> float:
    return asyncio.get_running_loop().time()


@define(eq=False)
class Stream:
    """One answer: its first byte, then its end."""

    asked: Asked
    server: SimulatedBox | None
    usage: Usage | None = None
    _begun: bool = False

    async def next(self, try_write: TryWrite | None = None, until: float | None = None) -> StreamBatch:
        if not self._begun:
            self._begun = True
            async with asyncio.timeout_at(until):
                if self.server is None:
                    await asyncio.sleep(CLOUD_FIRST)
                else:
                    await self.server.begin()
                    await asyncio.sleep(self.asked.first)
            return StreamBatch(deltas=(Delta(content="word"),), has_content=True)
        await asyncio.sleep(self.asked.seconds - self.asked.first if self.server is not None else 0.0)
        self.usage = Usage(self.asked.prompt, self.asked.output)
        return StreamBatch(done=True)

    def commit(self, idle: float) -> None:
        """The simulation knows no silence."""

    async def aclose(self) -> None:
        if self.server is not None:
            self.server.end()
            self.server = None


@define(eq=False)
class _Server:
    """What both have in common."""

    name: str
    asked: dict[str, Asked] = field(factory=dict)
    """By request id."""

    async def complete(self, call: Call, entry: Entry) -> Answer:
        raise NotImplementedError  # all of the day's requests are streams

    def first_byte_error(self, seconds: float) -> ProviderError:
        return FirstByteTimeout(f"{self.name}: nothing within {seconds:g} s")

    async def probe(self, seconds: float) -> ModelList | None:
        return None

    async def close(self) -> None:
        """Nothing is open."""


class SimulatedCloud(_Server):
    """See the module."""

    async def stream(self, call: Call, entry: Entry, until: float | None = None) -> Stream:
        return Stream(self.asked[call.request_id], None)


@define(eq=False)
class SimulatedBox(_Server):
    """One model, some slots; who comes meanwhile waits in a queue of its own, first come first served."""

    at_once: int = 1
    """Slots."""
    loaded: bool = False
    used_at: float = 0.0
    busy: int = 0
    begun: int = 0
    finished: int = 0
    aborted: int = 0
    most: int = 0
    """Requests that waited in its own queue, at most at a time."""
    _waiting: deque[asyncio.Future[None]] = field(factory=deque)
    _holds: int = 0

    async def stream(self, call: Call, entry: Entry, until: float | None = None) -> Stream:
        return Stream(self.asked[call.request_id], self)

    async def begin(self) -> None:
        """Returns when a slot is free; loads the model if that is not there."""
        self.busy += 1
        if self.busy > self.at_once:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self.most = max(self.most, len(self._waiting))
            try:
                await turn
            except BaseException:
                self.busy -= 1
                if turn in self._waiting:
                    self._waiting.remove(turn)
                raise
        self._holds += 1
        if not self._is_loaded():
            await self._load()

    def end(self) -> None:
        if self._holds:
            self._holds -= 1
            self.busy -= 1
            self.used_at = now()
            while self._waiting:
                turn = self._waiting.popleft()
                if not turn.done():
                    turn.set_result(None)
                    break

    def _is_loaded(self) -> bool:
        if self.loaded and not self.busy and now() - self.used_at > KEEP_ALIVE:
            self.loaded = False
        return self.loaded

    async def _load(self) -> None:
        self.begun += 1
        try:
            await asyncio.sleep(LOAD)
        except BaseException:
            self.aborted += 1
            raise
        self.finished += 1
        self.loaded, self.used_at = True, now()

    # --- as `ModelHost` ---

    async def residents(self, seconds: float) -> tuple[Resident, ...]:
        if not self._is_loaded():
            return ()
        expires = KEEP_ALIVE if self.busy else KEEP_ALIVE - (now() - self.used_at)
        return (Resident("m", SIZE, SIZE, WINDOW, expires),)

    async def slots(self, loaded: Iterable[str], seconds: float) -> Mapping[str, int]:
        return {}

    async def load(self, entry: Entry, *, pinned: bool) -> None:
        if not self._is_loaded():
            await self._load()
