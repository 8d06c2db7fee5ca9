"""One process that serves nobody, and starts those who do: sockets, forks, signals. `link` decides.

It has no event loop and no threads, so that a worker is a plain fork of it: it starts in milliseconds with all that
was imported and read before, and cannot fail where this process did not. A signal only writes its number into a
socket; all that happens is one step of the loop in `Supervisor.run`, which returns twice: in each worker with its
`WorkerLink`, and in the end, here, with the exit code.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from attrs import define, field

from manallm_proxy import __version__
from manallm_proxy.config.model import Config
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.events import Crashed, LifeChanged, Reloaded, WorkerEnded
from manallm_proxy.observe.fan_out import FanOut
from manallm_proxy.observe.log import Logs
from manallm_proxy.observe.metrics import Metrics
from manallm_proxy.process import systemd
from manallm_proxy.process.listeners import Listeners, reread
from manallm_proxy.process.worker_link import WorkerLink
from manallm_proxy.process.worker_messages import FROM_WORKER, Lines, to_line
from manallm_proxy.process.workers import WorkerManager

PATIENCE: Final = 20.0
"""Seconds that a worker's loop may be silent, where systemd's watchdog does not ask for less."""
QUEUE: Final = 1.0
"""Seconds that connections may wait for a worker that is started again; if it takes longer, others get them."""
UNREAD: Final = 2**24
"""Bytes that wait for a worker that does not read, beyond which it is told nothing more: it will be ended."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


@define(eq=False)
class _Line:
    """This end of the pair of sockets to one worker."""

    socket: socket.socket
    number: int
    lines: Lines = field(factory=Lines)
    unsent: bytearray = field(factory=bytearray, repr=False)
    over: bool = False
    """The other end is closed."""

    def send(self) -> None:
        """As much of what waits as there is room for."""
        try:
            del self.unsent[: self.socket.send(self.unsent)]
        except BlockingIOError:
            pass
        except OSError:  # it is gone, and will be missed soon
            self.unsent.clear()

    def receive(self) -> list[bytes] | None:
        """The lines that have come; None where none will any more. BlockingIOError where there are none yet."""
        try:
            data = self.socket.recv(2**18)
        except ConnectionError:
            return None
        return self.lines.feed(data) if data else None

    def rest(self) -> list[bytes]:
        """The last lines of a worker that has ended."""
        lines: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while (got := self.receive()) is not None:
                lines += got
        return lines


@define(eq=False)
class Supervisor:
    """Runs ``size`` workers. ``host`` and ``port`` are the command line's."""

    config: Config
    environ: Mapping[str, str] = field(repr=False)
    logs: Logs
    size: int
    host: str | None = None
    port: int | None = None
    greet: Callable[[str], None] | None = None
    """Says to a newcomer what to try, where there is one."""
    metrics: Metrics = field(init=False)
    observe: FanOut = field(init=False)
    """Takes all events, as in each worker."""
    _listeners: Listeners = field(init=False)
    _workers: WorkerManager = field(init=False)
    _lines: dict[int, _Line] = field(factory=dict)
    """By descriptor."""
    _poll: select.poll = field(factory=select.poll)
    _wakes: tuple[socket.socket, socket.socket] = field(factory=socket.socketpair)
    _watchdog: float | None = None
    _ping_at: float = 0.0
    _announced: bool = False
    _reloading: bool = False
    _code: int = 0

    def __attrs_post_init__(self) -> None:
        """ConfigError, or OSError where an address cannot be had."""
        self._listeners = Listeners.open(self.config, self.environ)
        self.metrics = Metrics(__version__, tuple, tuple)
        self.observe = FanOut([self.metrics, self.logs], self.logs)
        self._watchdog = systemd.watchdog_interval(self.environ, os.getpid())
        patience = PATIENCE if self._watchdog is None else min(PATIENCE, self._watchdog / 2)
        self._workers = WorkerManager(self.size, patience, lambda: self.metrics.render()[0].decode())

    def run(self) -> WorkerLink | int:
        """The exit code, once all workers have ended; in a worker that was just forked: its line."""
        for wake in self._wakes:
            wake.setblocking(False)
        signal.set_wakeup_fd(self._wakes[1].fileno(), warn_on_full_buffer=False)
        for each in SIGNALS:
            signal.signal(each, lambda *_: None)
        self._poll.register(self._wakes[0], select.POLLIN)
        while True:
            now = time.monotonic()
            for number in self._workers.to_start(now):
                member = self._start(number, now)
                if member is not None:
                    return member
            if self._workers.draining and not self._workers.workers:
                self.observe(LifeChanged("stopped"))
                return self._code
            self._send()
            for descriptor, event in self._poll.poll(1000 * max(0.0, self._next_at() - time.monotonic())):
                self._step(descriptor, event)
            self._bury()
            self._due(time.monotonic())

    def _next_at(self) -> float:
        at = self._workers.next_at()
        return at if self._watchdog is None else min(at, self._ping_at)

    def _step(self, descriptor: int, event: int) -> None:
        line = self._lines.get(descriptor)
        if line is not None:
            if event & ~select.POLLOUT:
                self._hear(line)
        else:
            for number in self._wakes[0].recv(4096):
                self._signalled(number)

    def _due(self, now: float) -> None:
        self._workers.due(now)
        for worker, hard in self._workers.to_end(now):
            os.kill(worker.pid, signal.SIGKILL if hard else signal.SIGABRT)
        if self._watchdog is not None and now >= self._ping_at:
            self._ping_at = now + self._watchdog / 2
            if self._workers.all_answer:
                systemd.alive(self.environ)

    # signals

    def _signalled(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number == signal.SIGHUP and not self._workers.draining:
            self._reload()

    def _stop(self) -> None:
        """The first time all drain, the second they hurry."""
        if not self._workers.draining:
            systemd.stopping(self.environ)
            self.observe(LifeChanged("draining", f"{len(self._workers.workers)} workers"))
            self._listeners.close_all()
            self._workers.drain(hurry=False)
        else:
            self._workers.drain(hurry=True)

    def _reload(self) -> None:
        """Read and checked once; then all workers get the very same, or, where there is any mistake, nothing."""
        systemd.reloading(self.environ)
        try:
            config = reread(self.config, self.environ, self.host, self.port, self._listeners.passed)
        except ConfigError as error:
            self.observe(Reloaded(error.mistakes))
            systemd.ready(f"reload refused: {error.mistakes[0]}", self.environ)
            return
        before, self.config = self.config.providers, config
        changed = {name for name, provider in before.items() if config.providers.get(name) != provider}
        self.logs.adjust(config.log.level, config.log.format)
        self._reloading = True
        self._workers.adopt(pickle.dumps(config), changed)

    def _ready(self) -> None:
        """All workers serve: for the first time, or a new configuration."""
        if not self._announced:
            where = ", ".join(self._listeners.names)
            self.observe(LifeChanged("started", f"listening on {where} with {self.size} workers{self._apart()}"))
        if self._reloading:
            self.observe(Reloaded())
        systemd.ready(self._workers.summary, self.environ)
        if not self._announced and self.greet is not None:
            self.greet(self._workers.banner)
        self._announced, self._reloading = True, False

    def _apart(self) -> str:
        """What an operator might take for a limit of all workers together."""
        limits = [f"providers.{p.name}.max_concurrent" for p in self.config.providers.values() if p.max_concurrent]
        keys = self.config.auth.keys
        limits += [f"auth.keys of {key.name}" for key in keys if key.requests_per_minute or key.concurrent_requests]
        return f"; each worker counts for itself: {', '.join(limits)}" if limits else ""

    # workers

    def _start(self, number: int, now: float) -> WorkerLink | None:
        """Forks. Returns a line in the worker only."""
        try:
            sockets = self._listeners.of(number)
            ours, theirs = socket.socketpair()
            # no signal may reach the new process before it has let go of what it inherited
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            again = self._workers.ended(number, now)
            self.observe(WorkerEnded(number, None, f"could not be started: {error.strerror or error}", again))
            return None
        if pid == 0:
            return self._become(number, sockets, ours, theirs)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        theirs.close()
        ours.setblocking(False)
        self._lines[ours.fileno()] = _Line(ours, number)
        self._poll.register(ours, select.POLLIN)
        self._workers.started(number, pid, now)
        return None

    def _become(
        self, number: int, sockets: list[socket.socket], ours: socket.socket, theirs: socket.socket
    ) -> WorkerLink:
        """In the worker: lets go of all that is the supervisor's. Its end of a line must be open nowhere else."""
        signal.set_wakeup_fd(-1)
        for each in SIGNALS:  # a terminal's go to the whole group, and the supervisor passes them on
            signal.signal(each, signal.SIG_IGN if each in (signal.SIGINT, signal.SIGHUP) else signal.SIG_DFL)
        for mine in (ours, *self._wakes, *(line.socket for line in self._lines.values())):
            mine.close()
        self._listeners.close_all(but=number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return WorkerLink(number, sockets, theirs)

    def _hear(self, line: _Line) -> None:
        lines = line.receive()
        if lines is None:
            line.over = True
            self._poll.unregister(line.socket)
            return
        self._take(line.number, lines)
        if self._workers.workers[line.number].leaving:
            self._listeners.close(line.number)
        if self._workers.all_serve and (self._reloading or not self._announced) and not self._workers.draining:
            self._ready()

    def _take(self, number: int, lines: list[bytes]) -> None:
        for each in lines:
            try:
                self._workers.received(number, FROM_WORKER.decode(each), time.monotonic())
            except Exception as error:  # a bug in an answer must not cost all workers
                self.observe(Crashed(f"what worker {number} said", error))

    def _send(self) -> None:
        by_number = {line.number: line for line in self._lines.values() if not line.over}
        for number, message in self._workers.outbox:
            line = by_number.get(number)
            if line is not None and len(line.unsent) < UNREAD:
                line.unsent += to_line(message)
        self._workers.outbox.clear()
        for line in by_number.values():
            if line.unsent:
                line.send()
                self._poll.modify(line.socket, select.POLLIN | (select.POLLOUT if line.unsent else 0))

    def _bury(self) -> None:
        """Each worker that has ended, once its last words are read."""
        for descriptor, line in list(self._lines.items()):
            worker = self._workers.workers[line.number]
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid == 0:
                continue
            self._take(line.number, line.rest())
            again = self._workers.ended(line.number, time.monotonic())
            if not line.over:
                self._poll.unregister(line.socket)
            line.socket.close()
            del self._lines[descriptor]
            if again is None or again > QUEUE:
                self._listeners.close(line.number)
            if again is None and status != 0:
                self._code = 1
            if status != 0 or not worker.leaving:
                self.observe(WorkerEnded(line.number, pid, _how(status, worker.ended_at is not None), again))


def _how(status: int, was_silent: bool) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name + (": it was silent" if was_silent else "")
    return f"signal {-code}"
