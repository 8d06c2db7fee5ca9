"""One serving process: assemble, start, reload, drain, stop.

Start: listen, then one round of probes or its timeout, then ``READY``. SIGHUP reloads, see `hangup` and `reload`.
SIGTERM and SIGINT drain: not ready any more, `LAME_DUCK` seconds of ``Connection: close``, no new connections, answers
in flight for up to ``limits.drain``, then an error event for the rest. A second signal shortens the wait.

As one of several workers it reloads and drains on its supervisor's request, and reports health changes to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, assert_never

import msgspec
from attrs import field

from manallm_proxy.config.model import Config
from manallm_proxy.contract.errors import ShuttingDown
from manallm_proxy.contract.events import LifecycleChanged, TlsNotVerified
from manallm_proxy.contract.records import define
from manallm_proxy.gateway.gateway import Gateway
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.hints import Hints
from manallm_proxy.gateway.reports import health_report
from manallm_proxy.gateway.serving import Serving
from manallm_proxy.http_server.aiohttp_server import Runner, Server
from manallm_proxy.observe.fan_out import FanOut
from manallm_proxy.observe.live_feed import FeedEvent, LiveFeed
from manallm_proxy.observe.log import Logs
from manallm_proxy.observe.loop_reports import loop_report
from manallm_proxy.observe.metrics import Metrics
from manallm_proxy.observe.request_log import RequestLog
from manallm_proxy.process import gauges, systemd
from manallm_proxy.process.hangup import Hangup
from manallm_proxy.process.listeners import drain_note, listen, name_of, reread
from manallm_proxy.process.reload import Reloader
from manallm_proxy.process.spend_keeper import SpendKeeper, keeper_of
from manallm_proxy.process.start_notes import budget_storage
from manallm_proxy.process.tracing import Tracing
from manallm_proxy.routing.circuit import SharedState
from manallm_proxy.routing.probes import Prober

if TYPE_CHECKING:
    from manallm_proxy.process.worker_link import WorkerLink  # which only workers need
    from manallm_proxy.process.worker_messages import Topic

LAME_DUCK: Final = 0.5
"""Seconds of ``Connection: close`` before the listeners close, so that no keep-alive client gets a reset."""
LAST_CALL: Final = 1.0
"""Max seconds a drain waits for the first request on connections that were already accepted."""
LAST_WORDS: Final = 2.0
"""Seconds for interrupted streams to write their error event."""


@define(eq=False)
class App:
    """One serving process. ``host`` and ``port`` come from the command line and win over the file at each load."""

    config: Config
    environ: Mapping[str, str] = field(repr=False)
    logs: Logs
    host: str | None = None
    port: int | None = None
    link: WorkerLink | None = None
    """Connects a worker to its supervisor; None if this is the only process. A worker handles SIGTERM only."""
    banner: Callable[[App], str] | None = None
    """Text that tells a new user what to try, for the terminal."""
    addresses: list[str] = field(factory=list)
    """Addresses it listens on, as URLs or ``unix:/path``."""
    metrics: Metrics = field(init=False)
    requests: RequestLog = field(init=False)
    feed: LiveFeed = field(init=False)
    gateway: Gateway = field(init=False)
    spend: SpendKeeper = field(init=False)
    observe: FanOut = field(init=False)
    """Receives all events."""
    tracing: Tracing = field(init=False)
    _hints: Hints = field(init=False)
    _prober: Prober = field(init=False)
    _probing: asyncio.Task[None] | None = None
    _ready: asyncio.Event = field(factory=asyncio.Event)
    _passed: list[socket.socket] = field(factory=list)
    """Listening sockets from systemd."""
    _stop: asyncio.Event = field(factory=asyncio.Event)
    _hurry: asyncio.Event = field(factory=asyncio.Event)
    _reloader: Reloader = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.metrics = gauges.metrics(lambda: self.gateway.generation)
        clock = asyncio.get_running_loop().time
        self.requests, self.feed = RequestLog(), LiveFeed(clock)
        if self.link is not None:
            self.feed.share, self.feed.call_out = self.link.happened, self.link.watching
        self.observe = FanOut([self.metrics, self.requests, self.feed, self.logs], self.logs)
        self._hints = Hints(lambda: self.gateway.generation, self.link.publish if self.link is not None else None)
        self.spend = keeper_of(self.config, self.environ, self.observe, self.link)
        boxes = self.link.boxes if self.link is not None else None
        generation = Generation.build(self.config, clock, self.observe, self._hints.publish, self.spend.ledger, boxes)
        serving, scraped = Serving(generation), self.metrics.scraped
        self.gateway = Gateway(serving, self.observe, scraped, self.requests, self.feed, self.link)
        self.tracing = Tracing(self.gateway.serving, self.observe)
        self._reloader = Reloader(self)
        self._take_over(generation)

    async def run(self) -> None:
        """Serves until `stop`, then drains. Raises OSError if it cannot listen."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._stray)
        server = Server(
            self.gateway.handle,
            header=self.config.limits.header,
            head_timeout=lambda: self.config.limits.body_timeout,
            limits=lambda: self.config.limits,
            refusal=self.gateway.refusal,
        )
        runner = Runner(server)
        for number in (signal.SIGTERM,) if self.link is not None else (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self.stop)  # before anyone can see that it listens
        await self._listen(runner)
        if self.link is None:
            loop.add_signal_handler(signal.SIGHUP, Hangup(self.reload, self.stop))
        else:
            await self.link.join(self)
        watchdog = systemd.watchdog(loop, self.environ, os.getpid())
        try:
            await self._first_round()
            if not self._stop.is_set():
                self._probing = loop.create_task(self._prober.run())
                self.gateway.generation.local.boxes.start()
                where = f"listening on {', '.join(self.addresses)}{budget_storage(self.config, self.spend.path)}"
                self._life("started", where if self.link is None else f"pid {os.getpid()}")
                self._report_ready(self.summary())
                self._ready.set()
                await self._stop.wait()
            await self._drain(runner)
        finally:
            if self._probing is not None:
                self._probing.cancel()
            await self._reloader.close()
            await runner.cleanup()
            await self._hints.close()
            await self.gateway.shared.close()
            await self.gateway.generation.close()
            await self.spend.close()
            if watchdog is not None:
                watchdog.cancel()
            await self.tracing.close()
            self._life("stopped")
            if self.link is not None:
                await self.link.leave(self.metrics.render()[0].decode())

    async def ready(self, running: asyncio.Future[None]) -> None:
        """Returns when `running` (the task of `run`) is ready, or has ended before that."""
        waiting = asyncio.ensure_future(self._ready.wait())
        await asyncio.wait((waiting, running), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    def stop(self) -> None:
        """The first call drains; the second ends the wait for answers in flight."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether it is draining."""
        return self._stop.is_set()

    # reloads, see `Reloader`

    def reload(self) -> asyncio.Task[None]:
        """Reads the files again and applies them; with any mistake, nothing changes."""
        return self._reloader.reload()

    @property
    def generation(self) -> Generation:
        """The current generation."""
        return self.gateway.generation

    def read(self) -> Config:
        """The configuration as the files have it now. Runs in a thread. Raises ConfigError."""
        return reread(self.config, self.environ, self.host, self.port, self._passed)

    def adopt(self, generation: Generation) -> None:
        """Serves `generation` from now on. No await: every request sees all of it or nothing."""
        before = self.gateway.generation
        generation.adopt()
        self.gateway.serving.generation, self.config = generation, generation.config
        before.retire(generation)
        self.gateway.pipeline.end_revoked()
        self.logs.adjust(self.config.log.level, self.config.log.format)
        self._take_over(generation)
        if self._probing is not None:
            self._probing.cancel()
            self._probing = asyncio.get_running_loop().create_task(self._probe_anew())

    # on request of the supervisor, see `worker_link.Duties`

    def merge_update(self, provider: str, model: str | None, update: SharedState) -> None:
        """Applies a health change that another worker reported."""
        self.gateway.generation.registry.merge_update(provider, model, update)

    async def part(self, topic: Topic) -> Callable[[], bytes]:
        """This worker's part of an answer for all workers: metrics, health or requests; to be called in a thread."""
        match topic:
            case "metrics":
                return self.metrics.scraped()
            case "health":
                return partial(msgspec.json.encode, (await health_report(self.gateway.generation))[1])
            case "requests":
                return lambda: msgspec.json.encode(self.requests.rows())
            case _:
                assert_never(topic)

    def prepare_pickled(self, number: int, config: bytes, reply: Callable[[tuple[str, ...]], None]) -> None:
        """Opens a new configuration that the supervisor has read, and replies with its mistakes."""
        self._reloader.prepare(number, config, reply)

    def adopt_prepared(self, number: int) -> None:
        """Serves the configuration that was prepared under `number`."""
        if self._reloader.adopt(number) and self._ready.is_set():
            self._report_ready(self.summary())

    def abandon_prepared(self, number: int) -> None:
        """Closes the configuration that was prepared under `number`, since another worker refused it."""
        self._reloader.abandon(number)

    def recall(self, question: str) -> str:
        """This worker's stored responses that `question` asks for."""
        return self.gateway.recall(question)

    def deliver_event(self, id_: str, kind: str, data: str) -> None:
        """Delivers another worker's live feed event to the readers here."""
        self.feed.deliver(FeedEvent(id_, kind, data))

    def watch(self, on: bool) -> None:
        """Sets whether another worker has readers of the live feed."""
        self.feed.watch_elsewhere(on)

    def drain(self, hurry: bool) -> None:
        """Drains. Not `stop`: the signal may have reached this process too, and must not count twice."""
        self._stop.set()
        if hurry:
            self._hurry.set()

    def _report_ready(self, summary: str) -> None:
        if self.link is None:
            systemd.ready(summary, self.environ)
        else:
            self.link.serving(summary, self.banner(self) if self.banner is not None else "")

    def _life(self, what: Literal["started", "draining", "stopped"], detail: str = "") -> None:
        self.observe(LifecycleChanged(what, detail, self.link.number if self.link is not None else None))

    def _take_over(self, generation: Generation) -> None:
        self.tracing.follow(generation.config)
        self._hints.follow(generation)
        settings = generation.config.health
        interval, timeout = settings.probe_interval, settings.probe_timeout
        self._prober = Prober(generation.providers, generation.registry, generation.catalog, interval, timeout)
        self.metrics.know(generation.prepared.targets)
        for provider in generation.config.providers.values():
            if not provider.verify_tls:
                self.observe(TlsNotVerified(provider.name))

    async def _first_round(self) -> None:
        """Runs the first round of probes. A reload meanwhile starts another one; a stop ends it."""
        stopped = asyncio.ensure_future(self._stop.wait())
        probed = None
        while probed is not self._prober and not self._stop.is_set():
            probed = self._prober
            probing = asyncio.ensure_future(self._round(probed))
            await asyncio.wait((probing, stopped), return_when=asyncio.FIRST_COMPLETED)
            probing.cancel()
        stopped.cancel()

    async def _round(self, prober: Prober) -> None:
        """One round of probes. A coroutine, since asyncio logs an error for a cancelled gather that nobody awaits."""
        await asyncio.gather(
            prober.once(), self.gateway.generation.local.boxes.refresh(self.config.health.probe_timeout)
        )

    async def _probe_anew(self) -> None:
        self.gateway.generation.local.boxes.start()
        await self._prober.once()
        await self._prober.run()

    def summary(self) -> str:
        """One line of status."""
        return gauges.summary(self.gateway.generation)

    async def _listen(self, runner: Runner) -> None:
        self._passed = systemd.listen_sockets(self.environ, os.getpid())
        await listen(self.config, runner, self._passed, self.link.sockets if self.link is not None else None)
        self.addresses += [name_of(address) for address in runner.addresses]

    async def _drain(self, runner: Runner) -> None:
        systemd.stopping(self.environ)
        if self.link is not None:
            self.link.leaving()
        self.gateway.serving.draining = True
        self.feed.close()
        self._life("draining", drain_note(len(self.gateway.pipeline.exchanges), "answer", self.config.limits.drain))
        await self._pause(LAME_DUCK)
        runner.stop_listening()
        last_call = asyncio.get_running_loop().time() + LAST_CALL
        while runner.awaits_first_requests() and asyncio.get_running_loop().time() < last_call:
            if self._hurry.is_set():
                break  # each pause would be none, and hold the loop
            await self._pause(LAST_CALL / 20)
        await self._until_idle(self.config.limits.drain)
        for exchange in list(self.gateway.pipeline.exchanges):
            exchange.interrupt(ShuttingDown("the proxy is shutting down", retry_after=1.0))
        self._hurry.clear()
        await self._until_idle(LAST_WORDS)

    async def _until_idle(self, seconds: float) -> None:
        """Waits up to `seconds` for the last exchange; checks again after waking, as a new one may have begun."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        hurry = asyncio.ensure_future(self._hurry.wait())
        while self.gateway.pipeline.exchanges and not hurry.done() and (left := ends - loop.time()) > 0:
            waiting = asyncio.ensure_future(self.gateway.pipeline.until_idle())
            await asyncio.wait((waiting, hurry), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        hurry.cancel()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    def _stray(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """The loop's exception handler: asyncio's own would print all values in `context`."""
        self.observe(loop_report(context))
