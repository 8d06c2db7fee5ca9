"""``serve``: runs the proxy until a signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from manallm_proxy.cli.standard_streams import greet
from manallm_proxy.cli.start_screen import start_screen, wrapped
from manallm_proxy.config.load import QUICKSTART, find_any, load
from manallm_proxy.config.model import Config, DiscoveredServer, Listen
from manallm_proxy.gateway.opening import try_open
from manallm_proxy.observe.log import Logs, quiet_libraries
from manallm_proxy.openai.allocator import tune_malloc
from manallm_proxy.process import pages, systemd
from manallm_proxy.process.app import App
from manallm_proxy.process.listeners import cannot_listen

if TYPE_CHECKING:
    from manallm_proxy.process.worker_link import WorkerLink


def serve(
    config_file: str | None,
    host: str | None,
    port: int | None,
    environ: Mapping[str, str],
    workers: int = 1,
    discover: bool = False,
) -> int:
    """Returns the exit code; 78 also if the address is taken. Raises ConfigError before anything is opened.

    `discover`: model servers that answer on this machine are added to the configuration.
    """
    found: tuple[DiscoveredServer, ...] = ()
    path = find_any(environ, config_file)
    if path is None:
        path, discover = QUICKSTART, True
        _say(environ, "no configuration found: this is the built-in quickstart ('manallm-proxy init' writes your own)")
    if discover:
        environ, found = _discover(environ, load(path, environ, host, port).listen)
    config = load(path, environ, host, port, found)
    for note in config.notes:
        _say(environ, note)
    logs = Logs.open(config.log.level, config.log.format, sys.stderr)
    quiet_libraries(logs)
    sys.setswitchinterval(0.001)  # how long the loop waits for the GIL while a thread works on something large
    ignore_signals()
    disable_core_dumps()
    raise_descriptor_limit()
    if workers > 1:
        return _serve_many(config, environ, logs, host, port, workers)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(config, environ, logs, host, port))


def _discover(environ: Mapping[str, str], own: Listen) -> tuple[Mapping[str, str], tuple[DiscoveredServer, ...]]:
    """The environment with the address of Ollama, and the servers that were found."""
    from manallm_proxy.cli.server_scan import scan_servers

    around = asyncio.run(scan_servers(environ, own))
    for line in around.lines():
        _say(environ, line)
    return around.environ(environ), around.found


def _say(environ: Mapping[str, str], line: str) -> None:
    if _is_read(environ):
        greet("\n".join(wrapped("", line)))


def _is_read(environ: Mapping[str, str]) -> bool:
    """Whether a person reads standard output; in the journal there is the log. The journal's variable alone is not
    enough: a desktop started by systemd passes it on to every terminal."""
    return "JOURNAL_STREAM" not in environ or sys.stdout.isatty()


def _serve_many(
    config: Config, environ: Mapping[str, str], logs: Logs, host: str | None, port: int | None, workers: int
) -> int:
    """Starts the workers. Returns in every process: in a worker when it ends, in the supervisor after all workers."""
    if not hasattr(os, "fork") or not hasattr(socket, "SO_REUSEPORT"):
        print("--workers: this system cannot share a port among processes", file=sys.stderr)
        return 2
    from manallm_proxy.process.supervisor import Supervisor

    _loop_factory()  # imports uvloop before the forks
    tune_malloc()  # for the forks, too
    asyncio.run(try_open(config))
    is_read = _is_read(environ)
    try:
        supervisor = Supervisor(config, environ, logs, workers, host, port, greet if is_read else None)
    except OSError as error:
        return _cannot_listen(config, error)
    link = supervisor.run()
    if isinstance(link, int):
        return link
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_work(supervisor.config, systemd.worker_environ(environ), logs, link, is_read))


async def _work(config: Config, environ: Mapping[str, str], logs: Logs, link: WorkerLink, is_read: bool) -> int:
    app = App(config, environ, logs, link=link, banner=start_screen if is_read else None)
    exclude_from_collection()  # before a client can come
    running = asyncio.ensure_future(app.run())
    await app.ready(running)
    await tune_memory()
    await running
    return 0


async def _serve(config: Config, environ: Mapping[str, str], logs: Logs, host: str | None, port: int | None) -> int:
    await try_open(config)
    app = App(config, environ, logs, host, port)
    exclude_from_collection()  # before a client can come
    try:
        running = asyncio.ensure_future(app.run())
        await app.ready(running)
        await asyncio.to_thread(tune_malloc)
        await tune_memory()
        if _is_read(environ) and not running.done():
            greet(start_screen(app))
        await running
    except OSError as error:
        return _cannot_listen(config, error)
    return 0


def _cannot_listen(config: Config, error: OSError) -> int:
    print(cannot_listen(config, error), file=sys.stderr)
    # 1, so that systemd tries again: a slow network may bring the address only after boot
    return 1 if error.errno == errno.EADDRNOTAVAIL else 78


def exclude_from_collection() -> None:
    """Excludes all objects that there are from garbage collection, and makes it less frequent.

    With the default thresholds, a collection every 700 new objects took a seventh of each request's time. There are few
    reference cycles here (the traceback of a failed attempt), and they can wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 100, 20)  # so that a large answer is not traversed while it is being built


async def tune_memory() -> None:
    """After the start: excludes what it has made besides, and releases memory. Requests may be there already, so what
    takes long, the kernel does meanwhile."""
    gc.freeze()
    await asyncio.to_thread(pages.advise_kernel)


def raise_descriptor_limit() -> None:
    """Raises the limit of file descriptors to the hard limit: a stream takes two, and a shell's default is 1024."""
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def ignore_signals() -> None:
    """Ignores signals that have no meaning here, but would end the process by default."""
    for each in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        signal.signal(each, signal.SIG_IGN)


def disable_core_dumps() -> None:
    """Disables core dumps, since memory holds keys and prompts.

    The limit is 1, not 0: the kernel pipes a core to a handler (``|...``) whatever the limit is, except at 1 (core(5),
    fs/coredump.c).
    """
    for limit in (1, 0):  # 1 fails if the hard limit is 0
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
            return


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop factory, if it is installed; None for asyncio's default."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
