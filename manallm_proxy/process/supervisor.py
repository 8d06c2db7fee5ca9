"""The supervisor: a process that serves no requests but starts the workers. Sockets, forks, signals.

`workers` decides, this file acts. There is no event loop and no thread, so a worker is a plain fork: it starts within
milliseconds, with everything imported and the configuration read. A signal handler only writes the signal's number
into a socket; everything else is a step of the loop in `Supervisor.run`. That function returns twice: in each worker
with its `WorkerLink`, and at the end, in the supervisor, with the exit code.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from attrs import field

from manallm_proxy import __version__
from manallm_proxy.config.changes import changes
from manallm_proxy.config.model import Config
from manallm_proxy.contract.events import Crashed, Event, LifecycleChanged, Reloaded, WorkerEnded
from manallm_proxy.contract.records import define
from manallm_proxy.observe.fan_out import FanOut
from manallm_proxy.observe.live_feed import Ids, shaped
from manallm_proxy.observe.log import Logs
from manallm_proxy.observe.metrics import Metrics
from manallm_proxy.process import spend_file, systemd
from manallm_proxy.process.config_reader import ConfigReader
from manallm_proxy.process.hangup import Hangup
from manallm_proxy.process.listeners import Listeners, drain_note, reread
from manallm_proxy.process.spend_keeper import keep, recover
from manallm_proxy.process.start_notes import budget_storage, per_worker_limits
from manallm_proxy.process.worker_link import WorkerLink
from manallm_proxy.process.worker_messages import FROM_WORKER, LiveEvent, to_line
from manallm_proxy.process.worker_socket import WorkerSocket, how_ended
from manallm_proxy.process.workers import WorkerManager

STALL_TIMEOUT: Final = 20.0
"""Max seconds without a sign of life from a worker's loop; half of systemd's watchdog interval, if that is less."""
RESTART_GRACE: Final = 1.0
"""Seconds that a dead worker's sockets stay open for its successor; then other workers get its connections."""
UNSENT_LIMIT: Final = 2**24
"""Max bytes queued for a worker that does not read. Later messages are dropped; its stall timeout will end it."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD)


@define(eq=False)
class Supervisor:
    """Runs ``size`` workers. ``host`` and ``port`` come from the command line."""

    config: Config
    environ: Mapping[str, str] = field(repr=False)
    logs: Logs
    size: int
    host: str | None = None
    port: int | None = None
    greet: Callable[[str], None] | None = None
    """Prints a worker's banner to the terminal; None without one."""
    metrics: Metrics = field(init=False)
    observe: FanOut = field(init=False)
    """Receives all events, as in each worker."""
    _listeners: Listeners = field(init=False)
    _workers: WorkerManager = field(init=False)
    _lines: dict[int, WorkerSocket] = field(factory=dict)
    """Line splitters by file descriptor."""
    _ids: Ids = field(factory=Ids)
    """Ids for its own events in the live feed."""
    _poll: select.poll = field(factory=select.poll)
    _wakes: tuple[socket.socket, socket.socket] = field(factory=socket.socketpair)
    _watchdog: float | None = None
    _ping_at: float = 0.0
    _announced: bool = False
    _reader: ConfigReader | None = None
    _next: Config | None = None
    """A configuration that the workers are preparing."""
    _queued: bool = False
    """Whether another reload follows the current one."""
    _adopting: bool = False
    """Whether workers are still adopting ``config``."""
    _changes: str = ""
    """The changes of the reload that is being adopted, in words."""
    _hangup: Hangup = field(init=False)
    _code: int = 0
    _spend: Path | None = None

    def __attrs_post_init__(self) -> None:
        """Raises ConfigError, or OSError if it cannot listen on an address."""
        self._listeners = Listeners.open(self.config, self.environ)
        self.metrics = Metrics(__version__, tuple, tuple)
        self.observe = FanOut([self.metrics, self._tell, self.logs], self.logs)
        self._watchdog = systemd.watchdog_interval(self.environ, os.getpid())
        stall = STALL_TIMEOUT if self._watchdog is None else min(STALL_TIMEOUT, self._watchdog / 2)
        self._workers = WorkerManager(self.size, stall, lambda: self.metrics.render()[0].decode())
        self._spend = spend_file.file_path(self.config, self.environ)
        recover(self._workers.ledger, self._spend, self.observe)

    def _tell(self, event: Event) -> None:
        """Sends reloads to the live feed, since no worker knows whether all of them have adopted one."""
        if isinstance(event, Reloaded) and (found := shaped(event)) is not None:
            self._workers.tell(LiveEvent(self._ids.next(), found[0], msgspec.json.encode(found[1]).decode()))

    def run(self) -> WorkerLink | int:
        """Returns the exit code after all workers have ended; in a new worker, its link to the supervisor."""
        for wake in self._wakes:
            wake.setblocking(False)
        signal.set_wakeup_fd(self._wakes[1].fileno(), warn_on_full_buffer=False)
        self._hangup = Hangup(self._reload, self._stop)
        for each in SIGNALS:
            signal.signal(each, lambda *_: None)
        self._poll.register(self._wakes[0], select.POLLIN)
        while True:
            self._finish_reload()  # before any fork: a new worker serves ``config``
            now = time.monotonic()
            for number in self._workers.to_start(now):
                link = self._start(number, now)
                if link is not None:
                    return link
            if self._workers.draining and not self._workers.workers:
                keep(self._workers.ledger, self._spend)
                self.observe(LifecycleChanged("stopped"))
                return self._code
            self._send()
            for descriptor, event in self._poll.poll(1000 * max(0.0, self._next_at() - time.monotonic())):
                self._on_ready(descriptor, event)
            self._reap()
            self._tick(time.monotonic())

    def _next_at(self) -> float:
        at = self._workers.next_at()
        return at if self._watchdog is None else min(at, self._ping_at)

    def _on_ready(self, descriptor: int, event: int) -> None:
        line = self._lines.get(descriptor)
        if line is not None:
            if event & ~select.POLLOUT:
                self._receive(line)
        elif self._reader is not None and descriptor == self._reader.socket.fileno():
            self._read_on(self._reader)
        elif descriptor == self._wakes[0].fileno():
            for number in self._wakes[0].recv(4096):
                self._on_signal(number)

    def _tick(self, now: float) -> None:
        self._workers.due(now)
        for worker, hard in self._workers.to_end(now):
            os.kill(worker.pid, signal.SIGKILL if hard else signal.SIGABRT)
        if self._watchdog is not None and now >= self._ping_at:
            self._ping_at = now + self._watchdog / 2
            if self._workers.all_answer:
                systemd.alive(self.environ)

    # signals

    def _on_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._stop()
        elif number == signal.SIGHUP and not self._workers.draining:
            self._hangup()

    def _stop(self) -> None:
        """The first call drains all workers; the second ends their wait for answers in flight."""
        if not self._workers.draining:
            systemd.stopping(self.environ)
            self.observe(
                LifecycleChanged("draining", drain_note(len(self._workers.workers), "worker", self.config.limits.drain))
            )
            self._listeners.close_all()
            self._workers.drain(hurry=False)
            if self._reader is not None:
                self._poll.unregister(self._reader.socket)
                self._reader.kill()
                self._reader = None
        else:
            self._workers.drain(hurry=True)

    def _reload(self) -> None:
        """Starts a reload, or queues one while another is being read or prepared."""
        if self._reader is not None or self._next is not None:
            self._queued = True
            return
        systemd.reloading(self.environ)
        read = partial(reread, self.config, self.environ, self.host, self.port, self._listeners.passed)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._reader = ConfigReader.start(read, self._let_go, self.logs)
        except OSError as error:
            self._refuse((f"no process could be started to read the configuration: {error.strerror or error}",))
        else:
            self._poll.register(self._reader.socket, select.POLLIN)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _read_on(self, reader: ConfigReader) -> None:
        """Hands the configuration to the workers once it is read, or refuses it."""
        descriptor = reader.socket.fileno()
        result = reader.receive()
        if result is None:
            return
        self._poll.unregister(descriptor)
        self._reader = None
        if isinstance(result, Config):
            self._next = result
            before = self.config.providers
            changed = {name for name, provider in before.items() if result.providers.get(name) != provider}
            self._workers.prepare(pickle.dumps(result), changed, time.monotonic())
        else:
            self._refuse(result)

    def _finish_reload(self) -> None:
        """Applies the workers' decision on a new configuration, then starts a queued reload."""
        mistakes = self._workers.take_outcome()
        if self._next is not None and mistakes is not None:
            if mistakes:
                self._refuse(mistakes)
            else:
                self._changes = changes(self.config, self._next)
                self.config, self._adopting = self._next, True
                self.logs.adjust(self.config.log.level, self.config.log.format)
            self._next = None
        if self._queued and self._reader is None and self._next is None and not self._workers.draining:
            self._queued = False
            self._reload()

    def _refuse(self, mistakes: tuple[str, ...]) -> None:
        self.observe(Reloaded(mistakes))
        systemd.ready(f"reload refused: {mistakes[0]}", self.environ)

    def _ready(self) -> None:
        """Reports that all workers serve: after the start, or after a reload."""
        if not self._announced:
            where = ", ".join(self._listeners.names)
            notes = per_worker_limits(self.config) + budget_storage(self.config, self._spend)
            self.observe(LifecycleChanged("started", f"listening on {where} with {self.size} workers{notes}"))
        if self._adopting:
            self.observe(Reloaded(changes=self._changes))
        systemd.ready(self._workers.summary, self.environ)
        if not self._announced and self.greet is not None:
            self.greet(self._workers.banner)
        self._announced, self._adopting = True, False

    # workers

    def _start(self, number: int, now: float) -> WorkerLink | None:
        """Forks a worker. Returns its link in the worker, None in the supervisor."""
        try:
            sockets = self._listeners.of(number)
            ours, theirs = socket.socketpair()
            # no signal may reach the new process before it has closed what it inherited
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
        self._lines[ours.fileno()] = WorkerSocket(ours, number)
        self._poll.register(ours, select.POLLIN)
        self._workers.started(number, pid, now)
        return None

    def _become(
        self, number: int, sockets: list[socket.socket], ours: socket.socket, theirs: socket.socket
    ) -> WorkerLink:
        """In the worker: closes what belongs to the supervisor."""
        self._let_go(number)
        ours.close()
        return WorkerLink(number, self.size, sockets, theirs)

    def _let_go(self, number: int = 0) -> None:
        """In a child: resets signals, and closes all sockets but those of worker `number`.

        The supervisor's ends of the links must be open in the supervisor only, so that workers notice its death.
        """
        signal.set_wakeup_fd(-1)
        of_all = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)  # a terminal sends these to the whole group
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN if each in of_all else signal.SIG_DFL)  # the supervisor passes them on
        for mine in (*self._wakes, *(line.socket for line in self._lines.values())):
            mine.close()
        if self._reader is not None:
            self._reader.socket.close()
        self._listeners.close_all(but=number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _receive(self, line: WorkerSocket) -> None:
        lines = line.receive()
        if lines is None:
            line.over = True
            self._poll.unregister(line.socket)
            return
        self._handle(line.number, lines)
        if self._workers.workers[line.number].leaving:
            self._listeners.close(line.number)
        if self._workers.all_serve and (self._adopting or not self._announced) and not self._workers.draining:
            self._ready()

    def _handle(self, number: int, lines: list[bytes]) -> None:
        for each in lines:
            try:
                self._workers.received(number, FROM_WORKER.decode(each), time.monotonic())
            except Exception as error:  # a bug here must not cost all workers
                self.observe(Crashed(f"message of worker {number}", error))

    def _send(self) -> None:
        by_number = {line.number: line for line in self._lines.values() if not line.over}
        for number, message in self._workers.outbox:
            line = by_number.get(number)
            if line is not None and len(line.unsent) < UNSENT_LIMIT:
                line.unsent += to_line(message)
        self._workers.outbox.clear()
        for line in by_number.values():
            if line.unsent:
                line.send()
                self._poll.modify(line.socket, select.POLLIN | (select.POLLOUT if line.unsent else 0))

    def _reap(self) -> None:
        """Collects workers that have ended, after reading their last messages."""
        for descriptor, line in list(self._lines.items()):
            worker = self._workers.workers[line.number]
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid == 0:
                continue
            self._handle(line.number, line.rest())
            again = self._workers.ended(line.number, time.monotonic())
            if not line.over:
                self._poll.unregister(line.socket)
            line.socket.close()
            del self._lines[descriptor]
            if again is None or again > RESTART_GRACE:
                self._listeners.close(line.number)
            if again is None and status != 0:
                self._code = 1
            if status != 0 or not worker.leaving:
                self.observe(WorkerEnded(line.number, pid, how_ended(status, worker.ended_at is not None), again))
