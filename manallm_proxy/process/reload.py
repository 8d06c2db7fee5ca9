"""Reloads in a serving process: read in a thread, prepare, adopt; one reload at a time.

A single process does all three steps itself on SIGHUP. In a worker the supervisor starts each step, so that either
all workers adopt the new configuration or none does.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, Protocol

from attrs import field

from manallm_proxy.config.changes import changes
from manallm_proxy.config.model import Config
from manallm_proxy.config.price_list import preload
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.events import Crashed, Event, Reloaded
from manallm_proxy.contract.records import define
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.own_thread import in_thread, made_in_thread
from manallm_proxy.process import systemd

READ_TIMEOUT: Final = 30.0
"""Seconds that reading the files may take (a network drive, a FIFO); then the reload is refused."""

TOO_SLOW: Final = f"the configuration could not be read within {READ_TIMEOUT:g} s"
OUR_ERROR: Final = "an error of ours ({}); the old configuration serves on"


class Reloadable(Protocol):
    """What a reload needs from the running proxy."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment, which names systemd's socket."""

    @property
    def generation(self) -> Generation:
        """The current generation."""

    @property
    def stopping(self) -> bool:
        """Whether it is draining; then nothing is adopted any more."""

    def read(self) -> Config:
        """Reads the files as they are now. Runs in a thread. Raises ConfigError."""

    def adopt(self, generation: Generation) -> None:
        """Serves `generation` from now on. Cannot fail."""

    def summary(self) -> str:
        """One line of status, for systemd."""

    def observe(self, event: Event) -> None:
        """Reports an event."""


@define(eq=False)
class Reloader:
    """The reloads of one process. A stop wins over any that is under way."""

    app: Reloadable = field(repr=False)
    _queued: bool = False
    _task: asyncio.Task[None] | None = None
    """The latest one."""
    _tasks: set[asyncio.Task[None]] = field(factory=set)
    _prepared: tuple[int, Generation] | None = None
    """In a worker: the supervisor's number, and the prepared generation that waits for its decision."""
    _abandoned: int = 0
    """In a worker: the last number that was abandoned. Numbers only grow."""

    def reload(self) -> asyncio.Task[None]:
        """Starts a reload, or queues one while another is under way. The task ends when no more is queued."""
        self._queued = True
        if self._task is None or self._task.done():
            self._task = self._begin(self._reload_all())
        return self._task

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancels what is under way and closes what is prepared."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._prepared is not None:
            await self._prepared[1].discard()

    async def _reload_all(self) -> None:
        while self._queued and not self.app.stopping:
            self._queued = False
            systemd.reloading(self.app.environ)
            before = self.app.generation.config
            mistakes = await self._reload()
            if not self.app.stopping:
                self.app.observe(Reloaded(mistakes, "" if mistakes else await self._changes(before)))
                status = f"reload refused: {mistakes[0]}" if mistakes else self.app.summary()
                systemd.ready(status, self.app.environ)

    async def _changes(self, before: Config) -> str:
        """What the log says of a reload: every alias is compared with what it was."""
        return await in_thread(partial(changes, before, self.app.generation.config))

    async def _reload(self) -> tuple[str, ...]:
        """One reload. Returns the mistakes for which it was refused."""
        try:
            config = await _read(self.app.read)
            generation = await self.app.generation.prepare(config)
        except ConfigError as error:
            return error.located
        except Exception as error:  # a bug must not end later reloads
            return self._crashed(error)
        if self.app.stopping:
            await generation.discard()
        else:
            self.app.adopt(generation)
        return ()

    def _crashed(self, error: Exception) -> tuple[str, ...]:
        self.app.observe(Crashed("reload", error))
        return (OUR_ERROR.format(type(error).__name__),)

    # in a worker

    def prepare(self, number: int, config: bytes, reply: Callable[[tuple[str, ...]], None]) -> None:
        """Opens the generation for a pickled `config`, after what is under way; `reply` gets the mistakes."""
        self._task = self._begin(self._prepare(number, config, reply, self._task))

    async def _prepare(
        self,
        number: int,
        config: bytes,
        reply: Callable[[tuple[str, ...]], None],
        before: asyncio.Task[None] | None,
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            new = await made_in_thread(partial(_unpickled, config))
            generation = await self.app.generation.prepare(new)
        except ConfigError as error:
            reply(error.located)
        except Exception as error:
            reply(self._crashed(error))
        else:
            if self.app.stopping or number <= self._abandoned:
                await generation.discard()
            else:
                self._prepared = number, generation
                reply(())

    def adopt(self, number: int) -> bool:
        """Adopts what `prepare` opened under `number`. False if there is no such generation, or the process drains."""
        if self._prepared is None or self._prepared[0] != number or self.app.stopping:
            return False
        (_, generation), self._prepared = self._prepared, None
        self.app.adopt(generation)
        return True

    def abandon(self, number: int) -> None:
        """Closes what `prepare` opened under `number`, or will open."""
        self._abandoned = number
        if self._prepared is not None and self._prepared[0] == number:
            (_, generation), self._prepared = self._prepared, None
            self._task = self._begin(generation.discard())


async def _read(read: Callable[[], Config]) -> Config:
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            return await made_in_thread(read)
    except TimeoutError:
        raise ConfigError([TOO_SLOW]) from None


def _unpickled(config: bytes) -> Config:
    new: Config = pickle.loads(config)  # noqa: S301  # from the process that forked this one
    if new.uses_price_list:
        preload()
    return new
