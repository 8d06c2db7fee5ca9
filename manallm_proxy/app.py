"""Assemble, start, reload, drain, stop.

The order of a life: listen; one round of probes, or its timeout; ``READY``. SIGHUP builds the next
snapshot beside the old one and swaps them in one assignment. SIGTERM and SIGINT: not ready any more, a
moment of ``Connection: close``, no new connections, the answers in flight up to ``limits.drain``, the
rest as broken streams; a second signal shortens the wait.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterable, Mapping
from typing import Final

from aiohttp import web
from aiohttp.web_runner import BaseSite
from attrs import define, field

from manallm_proxy import __version__, notify
from manallm_proxy.config import Config, ConfigError, exposure_mistake, load
from manallm_proxy.errors import ShuttingDown
from manallm_proxy.events import Crashed, Event, LifeChanged, Reloaded
from manallm_proxy.logs import Logs
from manallm_proxy.metrics import Metrics
from manallm_proxy.probes import Prober
from manallm_proxy.server import Runner
from manallm_proxy.snapshot import Snapshot
from manallm_proxy.web import Web

LAME_DUCK: Final = 0.5
"""Seconds of ``Connection: close`` before the listeners go, so that no keep-alive client runs into a reset."""
LAST_CALL: Final = 1.0
"""Seconds at most behind the listeners' end for who has just connected, and whose request is still on its way."""
LAST_WORDS: Final = 2.0
"""Seconds for interrupted streams to write their error event."""
BACKLOG: Final = 4096
"""Connections that wait to be accepted: during a restart all that come. Also a socket of systemd's gets this one."""


@define(eq=False)
class App:
    """One running proxy. ``host`` and ``port`` are the command line's, which win over the file at each load."""

    config: Config
    environ: Mapping[str, str] = field(repr=False)
    logs: Logs
    host: str | None = None
    port: int | None = None
    addresses: list[str] = field(factory=list)
    """Where it listens, as URLs or ``unix:/path``."""
    metrics: Metrics = field(init=False)
    web: Web = field(init=False)
    _prober: Prober = field(init=False)
    _probing: asyncio.Task[None] | None = None
    _ready: asyncio.Event = field(factory=asyncio.Event)
    _passed: list[socket.socket] = field(factory=list)
    """Sockets of systemd's."""
    _stop: asyncio.Event = field(factory=asyncio.Event)
    _hurry: asyncio.Event = field(factory=asyncio.Event)

    def __attrs_post_init__(self) -> None:
        self.metrics = Metrics(__version__, self._provider_gauges, self._key_gauges)
        snapshot = Snapshot.build(self.config, asyncio.get_running_loop().time, self.observe)
        self.web = Web(snapshot, self.observe, self.metrics.render)
        self._take_over(snapshot)

    def observe(self, event: Event) -> None:
        """Facts go to metrics and log, in this order."""
        self.metrics(event)
        self.logs(event)

    async def run(self) -> None:
        """From listening to the last answer. OSError where an address cannot be had."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._stray)
        self.logs.soon = loop.call_soon
        runner = Runner(
            self.web.application(),
            header=self.config.limits.header,
            patience=lambda: self.config.limits.body_timeout,
            observe=self.observe,
        )
        await runner.setup()
        sites = await self._listen(runner)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        watchdog = notify.watchdog(loop, self.environ, os.getpid())
        try:
            probed = None
            while probed is not self._prober:  # a reload meanwhile brings another
                probed = self._prober
                await probed.once()
            self._probing = loop.create_task(self._prober.run())
            self.observe(LifeChanged("started", f"listening on {', '.join(self.addresses)}"))
            notify.ready(self._summary(), self.environ)
            self._ready.set()
            await self._stop.wait()
            await self._drain(runner, sites)
        finally:
            if self._probing is not None:
                self._probing.cancel()
            await runner.cleanup()
            await self.web.snapshot.close()
            if watchdog is not None:
                watchdog.cancel()
            self.logs.soon = None
            self.observe(LifeChanged("stopped"))

    async def ready(self, running: asyncio.Future[None]) -> None:
        """Returns once `running` (of `run`) serves, or has ended without."""
        waiting = asyncio.ensure_future(self._ready.wait())
        await asyncio.wait((waiting, running), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    def stop(self) -> None:
        """The first call drains, the second hurries."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def reload(self) -> None:
        """Everything new, or, where there is any mistake, nothing. No await: no request sees a half."""
        if self._stop.is_set():
            return
        notify.reloading(self.environ)
        try:
            config = load(self.config.path, self.environ, self.host, self.port)
            if config.listen != self.config.listen or config.limits.header != self.config.limits.header:
                raise ConfigError(("listen, limits.header: cannot be changed by a reload; restart to change them",))
            self._refuse_exposed(config)
            snapshot = Snapshot.build(config, self.web.snapshot.board.clock, self.observe, self.web.snapshot)
        except ConfigError as error:
            self.observe(Reloaded(error.mistakes))
            notify.ready(f"reload refused: {error.mistakes[0]}", self.environ)
            return
        before, self.web.snapshot, self.config = self.web.snapshot, snapshot, config
        before.retire(snapshot)
        self.web.end_revoked()
        self.logs.adjust(config.log.level, config.log.format)
        self._take_over(snapshot)
        if self._probing is not None:
            self._probing.cancel()
            self._probing = asyncio.get_running_loop().create_task(self._probe_anew())
        self.observe(Reloaded())
        notify.ready(self._summary(), self.environ)

    def _take_over(self, snapshot: Snapshot) -> None:
        settings = snapshot.config.health
        self._prober = Prober(
            snapshot.upstreams, snapshot.board, snapshot.catalog, settings.probe_interval, settings.probe_timeout
        )
        self.metrics.know(entry.target for chain in snapshot.config.aliases.values() for entry in chain)

    async def _probe_anew(self) -> None:
        await self._prober.once()
        await self._prober.run()

    def _provider_gauges(self) -> Iterable[tuple[str, bool, int]]:
        now = self.web.snapshot.board.clock()
        for name, health in self.web.snapshot.board.providers.items():
            yield name, health.is_usable(now), health.in_flight

    def _key_gauges(self) -> Iterable[tuple[str, int]]:
        return ((caller.key.name, caller.in_flight) for caller in self.web.snapshot.keyring)

    def _summary(self) -> str:
        providers = self.web.snapshot.board.providers
        usable = sum(usable for _, usable, _ in self._provider_gauges())
        return f"serving {len(self.config.aliases)} aliases, {usable} of {len(providers)} providers usable"

    async def _listen(self, runner: Runner) -> list[BaseSite]:
        """A socket from systemd wins over ``unix``, that over host and port."""
        sites: list[BaseSite] = []
        self._passed = notify.listen_sockets(self.environ, os.getpid())
        listen = self.config.listen
        if self._passed:
            self._refuse_exposed(self.config)
            sites += [web.SockSite(runner, each, backlog=BACKLOG) for each in self._passed]
        elif listen.unix is not None:
            sites.append(web.UnixSite(runner, listen.unix, backlog=BACKLOG))
        else:
            sites.append(web.TCPSite(runner, listen.host, listen.port, backlog=BACKLOG))
        for site in sites:
            await site.start()
        self.addresses += [_name(address) for address in runner.addresses]
        return sites

    def _refuse_exposed(self, config: Config) -> None:
        """A socket of systemd's is held to the same rule as ``listen``: never open to others unasked."""
        for each in self._passed:
            if each.family in (socket.AF_INET, socket.AF_INET6):
                mistake = exposure_mistake(config, each.getsockname()[0])
                if mistake is not None:
                    raise ConfigError((mistake,))

    async def _drain(self, runner: Runner, sites: list[BaseSite]) -> None:
        notify.stopping(self.environ)
        self.web.draining = True
        self.observe(LifeChanged("draining", f"{len(self.web.exchanges)} answers in flight"))
        await self._pause(LAME_DUCK)
        for site in sites:
            await site.stop()
        last_call = asyncio.get_running_loop().time() + LAST_CALL
        while runner.awaits_first_requests() and asyncio.get_running_loop().time() < last_call:
            await self._pause(LAST_CALL / 20)
        await self._until_idle(self.config.limits.drain)
        for exchange in list(self.web.exchanges):
            exchange.interrupt(ShuttingDown("the proxy is shutting down", retry_after=1.0))
        self._hurry.clear()
        await self._until_idle(LAST_WORDS)

    async def _until_idle(self, seconds: float) -> None:
        """Idle may last for a moment only, so it is looked for again."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        hurry = asyncio.ensure_future(self._hurry.wait())
        while self.web.exchanges and not hurry.done() and (left := ends - loop.time()) > 0:
            waiting = asyncio.ensure_future(self.web.idle.wait())
            await asyncio.wait((waiting, hurry), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        hurry.cancel()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            pass

    def _stray(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """What asyncio would print with all it holds: as a fact, without the context's values."""
        error = context.get("exception")
        if isinstance(error, BaseException):
            self.observe(Crashed("background", error))


def _name(address: object) -> str:
    if isinstance(address, tuple):
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"http://{host}:{address[1]}"
    return f"unix:{address}"
