"""``serve``: run the proxy until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
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
    """ConfigError before anything has begun; exit code 78 too where the address is taken."""
    config = load(find(environ, config_file), environ, host, port)
    logs = Logs.open(config.log.level, config.log.format, sys.stderr)
    quiet_libraries(logs)
    leave_no_core()
    take_descriptors()
    if workers > 1:
        return _serve_many(config, environ, logs, host, port, workers)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(config, environ, logs, host, port))


def _serve_many(
    config: Config, environ: Mapping[str, str], logs: Logs, host: str | None, port: int | None, workers: int
) -> int:
    """From here on in several processes: in the supervisor to the end of all, in each worker to its own."""
    if not hasattr(os, "fork") or not hasattr(socket, "SO_REUSEPORT"):
        print("--workers: this system cannot share a port among processes", file=sys.stderr)
        return 2
    from manallm_proxy.process.supervisor import Supervisor

    _loop_factory()  # imported once for all
    asyncio.run(try_open(config))
    greets = "JOURNAL_STREAM" not in environ
    greet = partial(print, flush=True) if greets else None
    try:
        supervisor = Supervisor(config, environ, logs, workers, host, port, greet)
    except OSError as error:
        return _cannot_listen(config, error)
    member = supervisor.run()
    if isinstance(member, int):
        return member
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_work(supervisor.config, systemd.without(environ), logs, member, greets))


async def _work(config: Config, environ: Mapping[str, str], logs: Logs, member: WorkerLink, greets: bool) -> int:
    app = App(config, environ, logs, link=member, banner=banner if greets else None)
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
    # an address that is not there yet may come (a network that is late at boot): that is worth another try
    return 1 if error.errno == errno.EADDRNOTAVAIL else 78


def settle() -> None:
    """What the start has made stays for good, and the collector need not look at it again.

    Nor as often as it would: with 700 new objects a round it took a seventh of each request's time. Cycles, which are
    few here (a failed attempt's traceback), wait a little longer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def take_descriptors() -> None:
    """As many as the system lets us have: a stream takes two, and a shell's usual 1024 are soon gone."""
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def leave_no_core() -> None:
    """Memory holds keys and prompts. 1, not 0: the kernel hands a core to a handler (``|...``) whatever the limit is,
    but for this one (core(5), fs/coredump.c).
    """
    for limit in (1, 0):  # 1 is out of reach where the operator's hard limit is 0
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
            return


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: the process tests run on it, those inside pytest on asyncio."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def banner(app: App) -> str:
    """What `make run` shows a newcomer: providers, aliases, a line to try."""
    generation = app.web.generation
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
