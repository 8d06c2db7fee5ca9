"""The process from which commands and clients are forked: ``python -m tests.forkserver DESCRIPTOR [MODULE ...]``.

Three quarters of a start are imports, and half of the rest is what cattrs makes of our classes; the suite starts two
hundred processes. This one imports what ``serve`` and the other commands need and reads a configuration once, or
imports the given modules of a client's SDK, and forks for each request. The child has the
descriptors, the environment and the folder that it was sent, and no others. At its end it waits for threads and calls
exit handlers as any Python process does, but does not take its modules to pieces, for which it would have to copy most
of the memory. In that, and in ``/proc/*/cmdline`` and ``environ``, it differs from one that was started anew. When this
process forks it has no threads and no event loop.

A request is JSON of ``arguments``, ``environ``, ``folder``, the path of a ``program`` unless it is for our command, and
``surroundings``, if any: how many ``files`` may be open, the path of a ``terminal`` that becomes that of a session of
its own, signals that it ``ignores`` from the start as after nohup, which standard descriptors are ``closed``, and
whether a socket is ``announced`` as systemd does though none is passed. With it come four descriptors: standard input,
output, error, and a socket that is told the process id and then the exit code, negative for a signal as in
`subprocess`. A fifth is the socket that systemd would pass.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
from collections.abc import Sequence

COMMANDS = ("chat", "check", "explain", "requests", "serve", "server_scan", "status")
MAIN = "manallm_proxy.__main__"
NEEDED = ("uvloop", MAIN, "manallm_proxy.process.supervisor", *(f"manallm_proxy.cli.{name}" for name in COMMANDS))
STATUS, LISTENER, DESCRIPTORS = 3, 4, 5
LIMIT = 1 << 17
codes: list[int] = []
"""What the command of a child has returned."""


def serve(requests: socket.socket) -> list[str] | None:
    """Returns in each child, with its arguments; and None when whoever asked is gone, with all children ended."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    running: dict[int, tuple[int, int]] = {}  # by the descriptor that tells of the end: process, whom to tell
    while True:
        for number, _ in poll.poll():
            if number in running:
                poll.unregister(number)
                pid, status = running.pop(number)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):  # nobody waits for it
                    os.write(status, str(code).encode())
                os.close(number)
                os.close(status)
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, LIMIT, DESCRIPTORS)
            if not message:
                for pid, _ in running.values():
                    os.kill(pid, signal.SIGKILL)
                return None
            pid = os.fork()
            if pid == 0:
                requests.detach()
                return become(json.loads(message), descriptors)
            status = descriptors.pop(STATUS)
            running[end := os.pidfd_open(pid)] = pid, status
            poll.register(end, select.POLLIN)
            for each in descriptors:
                os.close(each)
            os.write(status, str(pid).encode())


def become(request: dict[str, object], descriptors: list[int]) -> list[str]:
    """Makes of this process the one that was asked for. Returns its ``sys.argv``."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    environ, folder, arguments = request["environ"], request["folder"], request["arguments"]
    assert isinstance(environ, dict) and isinstance(folder, str) and isinstance(arguments, list)
    program = request.get("program", sys.argv[0])
    assert isinstance(program, str)
    for number, each in enumerate(descriptors[:3]):
        os.dup2(each, number)
    own = 3
    if len(descriptors) > LISTENER:
        os.dup2(descriptors[LISTENER], own)
        own += 1
        environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    os.closerange(own, 1 << 16)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    sys.stdout, sys.stderr = _writer(1, "strict"), _writer(2, "backslashreplace")
    surroundings = request.get("surroundings", {})
    assert isinstance(surroundings, dict)
    _surround(environ, **surroundings)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    return [program, *arguments]


def _surround(
    environ: dict[str, str],
    files: int | None = None,
    terminal: str | None = None,
    ignores: Sequence[int] = (),
    closed: Sequence[int] = (),
    announced: bool = False,
) -> None:
    """What a shell, nohup, ulimit or a service manager would have done before the start."""
    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if terminal is not None:
        os.setsid()
        os.close(os.open(terminal, os.O_RDWR))  # the first that a session's leader opens becomes the session's (tty(4))
    for number in ignores:
        signal.signal(number, signal.SIG_IGN)
    for number in closed:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)  # as Python begins then
    if announced:
        environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}


def end_at_once() -> None:
    """The last exit handler of a child whose command has returned its exit code."""
    for code in codes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(arguments: list[str]) -> int:
    """The exit code of our command, or of a program: what it returned, or ended with, as argparse ends ``--help``."""
    is_ours, sys.argv[:] = arguments[0] == sys.argv[0], arguments
    try:
        if is_ours:
            return int(importlib.import_module(MAIN).main(arguments[1:]))
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _writer(number: int, errors: str) -> io.TextIOWrapper:
    """As Python makes them: by lines on a terminal and for errors."""
    raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
    return io.TextIOWrapper(raw, "utf-8", errors, line_buffering=number == 2 or os.isatty(number))


if __name__ == "__main__":
    atexit.register(end_at_once)  # the first to be registered, and so the last to be called
    own, number, *modules = sys.argv
    gc.disable()  # of what is imported nothing is garbage
    for name in modules or NEEDED:
        importlib.import_module(name)
    if not modules:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            is_fine = importlib.import_module(MAIN).main(["check", "--config", "config/proxy.yaml"]) == 0
        assert is_fine, said.getvalue()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, whose end ends this process
    gc.freeze()
    gc.enable()
    if (given := serve(socket.socket(fileno=int(number)))) is not None:
        codes.append(run(given))
