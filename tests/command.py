"""``python -m manallm_proxy`` as a child, forked from a process that has imported it where that makes no difference."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from attrs import define

ROOT = Path(__file__).parent.parent
PIPE, STDOUT, DEVNULL = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT, asyncio.subprocess.DEVNULL
IMPORTS = ("PYTHON", "SSL_", "LD_", "LC_", "LANG")
"""What is read when Python starts or a library is imported: variables that begin so are for a process of its own."""


@define(eq=False)
class Forked:
    """What is used of `asyncio.subprocess.Process`."""

    pid: int
    stdout: asyncio.StreamReader | None
    stderr: asyncio.StreamReader | None
    _end: asyncio.Task[int]
    _pipes: list[asyncio.BaseTransport]

    @property
    def returncode(self) -> int | None:
        return self._end.result() if self._end.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._end)

    async def communicate(self) -> tuple[bytes, bytes]:
        """All that it writes, once it has ended."""
        streams = [stream.read() if stream else _nothing() for stream in (self.stdout, self.stderr)]
        output, errors = await asyncio.gather(*streams)
        await self.wait()
        return output, errors

    def send_signal(self, number: int) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Child = Forked | asyncio.subprocess.Process


async def start(
    *arguments: str,
    environ: Mapping[str, str],
    folder: Path = ROOT,
    stdout: int = PIPE,
    stderr: int = PIPE,
    text: bytes = b"",
    listener: socket.socket | None = None,
    program: Path | None = None,
    surroundings: Mapping[str, object] = MappingProxyType({}),
    anew: bool = False,
) -> Child:
    """The command as a child: its whole environment, its folder, where it writes to, and what it reads (64 KiB).

    `listener`: passed to it as systemd does. `program`: a script that takes the command's place.
    `surroundings`: see `forkserver.py`; of them a process of its own gets none but ``files``. `anew`: not forked, for a
    test that looks at the process from outside.
    """
    own = {name for name in environ if name.startswith(IMPORTS) and environ[name] != os.environ.get(name)}
    reads, writes = os.pipe()
    try:
        os.write(writes, text)
    finally:
        os.close(writes)
    try:
        if anew or own or not hasattr(os, "pidfd_open"):
            path = os.pathsep.join(filter(None, [environ.get("PYTHONPATH"), str(ROOT)]))
            what = ["-m", "manallm_proxy"] if program is None else [str(program)]
            command = [sys.executable, *what, *arguments]
            if listener is not None:
                at = listener.fileno()
                command = ["bash", "-c", f'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&{at} {at}<&-', "", *command]
            assert surroundings.keys() <= {"files"}, "what only the process that forks can do"
            if files := surroundings.get("files"):
                command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "", *command]
            return await asyncio.create_subprocess_exec(
                *command,
                cwd=folder,
                env={**environ, "PYTHONPATH": path},
                pass_fds=() if listener is None else [listener.fileno()],
                stdin=reads,
                stdout=stdout,
                stderr=stderr,
            )
        passed = [] if listener is None else [listener.fileno()]
        request: dict[str, object] = {"arguments": arguments, "environ": dict(environ), "folder": str(folder)}
        request["surroundings"] = dict(surroundings)
        if program is not None:
            request["program"] = str(program)
        return await _fork(request, [reads, *passed], stdout, stderr)
    finally:
        os.close(reads)


async def _fork(request: dict[str, object], passed: list[int], stdout: int, stderr: int) -> Forked:
    """`passed`: its standard input, and a socket that listens."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with contextlib.ExitStack() as sent:
        sent.callback(theirs.close)
        streams, given, pipes = [], passed[:1], []
        for wanted in (stdout, stderr):
            stream, number, pipe = await _stream(wanted, given[-1])
            streams.append(stream)
            given.append(number)
            pipes += pipe
            sent.callback(os.close, number)
        socket.send_fds(server(), [json.dumps(request).encode()], [*given, theirs.fileno(), *passed[1:]])
    loop = asyncio.get_running_loop()
    if not (pid := await loop.sock_recv(ours, 16)):
        raise RuntimeError("the process that forks has ended")

    async def end() -> int:
        with ours:
            return int(await loop.sock_recv(ours, 16))

    return Forked(int(pid), streams[0], streams[1], asyncio.ensure_future(end()), pipes)


async def _stream(wanted: int, other: int) -> tuple[asyncio.StreamReader | None, int, list[asyncio.BaseTransport]]:
    """Our end and the child's of one of its outputs; STDOUT: as the `other`."""
    if wanted >= 0:
        return None, os.dup(wanted), []
    if wanted != PIPE:
        return None, os.dup(other) if wanted == STDOUT else os.open(os.devnull, os.O_WRONLY), []
    reads, writes = os.pipe()
    stream = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reads, "rb", 0)
    )
    return stream, writes, [pipe]


async def _nothing() -> bytes:
    return b""


_servers: dict[str, tuple[socket.socket, subprocess.Popen[bytes]]] = {}


def server(name: str = "", modules: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> socket.socket:
    """Where to ask the process that forks, of which there is one for each `name`; it ends with this one.

    Without a name it is that of our commands, else one that has imported `modules` in `environ`.
    """
    if name not in _servers:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", "tests.forkserver", str(number), *modules]
            child = subprocess.Popen(command, cwd=ROOT, pass_fds=[number], env=environ)
        _servers[name] = ours, child
        atexit.register(child.wait)
        atexit.register(ours.close)
    return _servers[name][0]
