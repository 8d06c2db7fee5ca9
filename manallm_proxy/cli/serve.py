"""``serve``: run the proxy until a signal stops it."""

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
from functools import partial
from typing import TYPE_CHECKING

from manallm_proxy.config.load import find, load
from manallm_proxy.config.model import Config
from manallm_proxy.gateway.generation import try_open
from manallm_proxy.observe.log import Logs, quiet_libraries
from manallm_proxy.process import systemd
from manallm_proxy.process.app import App

if TYPE_CHECKING:
    from manallm_proxy.process.worker_link import WorkerLink


def serve(
    config_file: str | None, host: str | None, port: int | None, environ: Mapping[str, str], workers: int = 1
) -> int:
    """Returns the exit code; 78 also if the address is taken. Raises ConfigError before anything is opened."""
    config = load(find(environ, config_file), environ, host, port)
    logs = Logs.open(config.log.level, config.log.format, sys.stderr)
    quiet_libraries(logs)
    sys.setswitchinterval(0.001)  # while a thread works on what is large, the loop waits so long for each of its turns
    ignore_signals()
    leave_no_core()
    take_descriptors()
    if workers > 1:
        return _serve_many(config, environ, logs, host, port, workers)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(config, environ, logs, host, port))


def _serve_many(
    config: Config, environ: Mapping[str, str], logs: Logs, host: str | None, port: int | None, workers: int
) -> int:
    """Starts the workers. Returns in every process: in a worker at its own end, in the supervisor after all others."""
    if not hasattr(os, "fork") or not hasattr(socket, "SO_REUSEPORT"):
        print("--workers: this system cannot share a port among processes", file=sys.stderr)
        return 2
    from manallm_proxy.process.supervisor import Supervisor

    _loop_factory()  # so that uvloop is imported before the forks
    asyncio.run(try_open(config))
    on_terminal = "JOURNAL_STREAM" not in environ
    greet = partial(print, flush=True) if on_terminal else None
    try:
        supervisor = Supervisor(config, environ, logs, workers, host, port, greet)
    except OSError as error:
        return _cannot_listen(config, error)
    link = supervisor.run()
    if isinstance(link, int):
        return link
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_work(supervisor.config, systemd.without(environ), logs, link, on_terminal))


async def _work(config: Config, environ: Mapping[str, str], logs: Logs, link: WorkerLink, on_terminal: bool) -> int:
    app = App(config, environ, logs, link=link, banner=banner if on_terminal else None)
    running = asyncio.ensure_future(app.run())
    await app.ready(running)
    settle()
    await running
    return 0


async def _serve(config: Config, environ: Mapping[str, str], logs: Logs, host: str | None, port: int | None) -> int:
    await try_open(config)
    app = App(config, environ, logs, host, port)
    try:
        running = asyncio.ensure_future(app.run())
        await app.ready(running)
        settle()
        if "JOURNAL_STREAM" not in environ and not running.done():
            print(banner(app), flush=True)
        await running
    except OSError as error:
        return _cannot_listen(config, error)
    return 0


def _cannot_listen(config: Config, error: OSError) -> int:
    where = config.listen.unix or f"{config.listen.host}:{config.listen.port}"
    print(f"listen: cannot listen on {where}: {error.strerror or error}", file=sys.stderr)
    # 1: systemd tries again, since a network that is late at boot may still bring the address
    return 1 if error.errno == errno.EADDRNOTAVAIL else 78


def settle() -> None:
    """Excludes the objects of the start from garbage collection, and collects less often from now on.

    With the default thresholds a collection every 700 new objects took a seventh of each request's time. There are few
    cycles here (the traceback of a failed attempt), and they can wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def take_descriptors() -> None:
    """Raises the limit of file descriptors as far as allowed: a stream takes two, and a shell gives 1024."""
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def ignore_signals() -> None:
    """What means nothing here must not end the proxy, as it would by default."""
    for each in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        signal.signal(each, signal.SIG_IGN)


def leave_no_core() -> None:
    """Disables core dumps, since memory holds keys and prompts.

    The limit is 1, not 0: the kernel pipes a core to a handler (``|...``) whatever the limit is, except at 1 (core(5),
    fs/coredump.c).
    """
    for limit in (1, 0):  # 1 is out of reach where the operator's hard limit is 0
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
            return


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, if it is installed; None means asyncio's."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def banner(app: App) -> str:
    """What `make run` prints for a new user: providers, aliases, and a command to try."""
    generation = app.gateway.generation
    now = generation.registry.clock()
    lines = ["manallm-proxy is ready.", "", "Providers:"]
    for name, health in generation.registry.providers.items():
        why = generation.config.providers[name].api_key_missing or health.provider.last_error or ""
        lines.append(
            f"  {name:<14} {health.status(now) if not health.provider.failures else 'down'}{f' ({why})' if why else ''}"
        )
    lines += ["", "Aliases:"]
    for name, chain in generation.config.aliases.items():
        lines.append(f"  {name:<18} {' -> '.join(str(entry.target) for entry in chain)}")
    address = app.addresses[0]
    unix, base = ("", address) if address.startswith("http") else (f"--unix-socket {address[5:]} ", "http://localhost")
    model = generation.config.default or "ollama/llama3.2"
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    lines += [
        "",
        "Try:",
        f"  curl {unix}{base}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
        "",
    ]
    return "\n".join(lines)
