"""The process from which commands under test are forked: ``python -m tests.forkserver DESCRIPTOR``.

Three quarters of a start are imports, and the suite starts two hundred processes. This one imports what ``serve`` and
the other commands need, and forks for each request. The child has the descriptors, the environment and the folder that
it was sent, no others, and ends as any Python process does, so that it differs from one that was started anew in its
``/proc/*/cmdline`` and ``environ`` only. It has no threads and no event loop when it forks.

A request is JSON of ``arguments``, ``environ``, ``folder`` with four descriptors: standard input, output, error, and a
socket that is told the process id and then the exit code, negative for a signal as in `subprocess`. A fifth is the
socket that systemd would pass.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import sys

from manallm_proxy.__main__ import main

COMMANDS = ("chat", "check", "explain", "look_around", "requests", "serve", "status")
NEEDED = ("uvloop", "manallm_proxy.process.supervisor", *(f"manallm_proxy.cli.{name}" for name in COMMANDS))
STATUS, LISTENER, DESCRIPTORS = 3, 4, 5
LIMIT = 1 << 17


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
    """Makes of this process the one that was asked for. Returns its arguments."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    environ, folder, arguments = request["environ"], request["folder"], request["arguments"]
    assert isinstance(environ, dict) and isinstance(folder, str) and isinstance(arguments, list)
    for number, each in enumerate(descriptors[:3]):
        os.dup2(each, number)
    own = 3
    if len(descriptors) > LISTENER:
        os.dup2(descriptors[LISTENER], own)
        own += 1
        environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    os.closerange(own, 1 << 16)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    sys.stdout, sys.stderr = _writer(1, "strict"), _writer(2, "backslashreplace")
    return arguments


def _writer(number: int, errors: str) -> io.TextIOWrapper:
    """As Python makes them: by lines on a terminal and for errors."""
    raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
    return io.TextIOWrapper(raw, "utf-8", errors, line_buffering=number == 2 or os.isatty(number))


if __name__ == "__main__":
    for name in NEEDED:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, whose end ends this process
    gc.freeze()
    if (given := serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        sys.argv[1:] = given
        sys.exit(main(given))
