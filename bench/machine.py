"""What the benchmark asks of Linux: cores, processes of its own, a network that is nothing but loopback."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import define, field, frozen

ALONE = "MANALLM_BENCH_ALONE"
"""Set for the process that runs in a network of its own."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class BenchError(Exception):
    """What cannot be measured here, said to a person."""


@frozen
class Layout:
    """Who runs where."""

    proxy: int
    tools: int

    @classmethod
    def choose(cls, wanted: str) -> Layout:
        """The proxy under test on one core, generator and upstream on another; ``CORES=1``: all on one."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[-1], cores[0] if wanted != "1" else cores[-1])

    def __str__(self) -> str:
        if self.proxy == self.tools:
            return "proxy, generator and upstream share one core"
        return "the proxy on one core, generator and upstream on another"


@define(eq=False)
class Child:
    """A process that we started, with all it started; it ends with us whatever happens."""

    process: subprocess.Popen[bytes]
    log: Path
    _known: set[int] = field(factory=set)

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        core: int,
        log: Path,
        environ: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> Child:
        parent = os.getpid()

        def confine() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            os.sched_setaffinity(0, {core})
            if os.getppid() != parent:  # it was gone before we asked
                os._exit(1)

        with log.open("ab") as output:
            return cls(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=folder,
                    env={**os.environ, **(environ or {})},
                    start_new_session=True,  # Ctrl-C is ours; we tell it
                    preexec_fn=confine,
                ),
                log,
            )

    def pids(self) -> list[int]:
        """It and its descendants that run now."""
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            try:
                for path in Path(f"/proc/{pid}/task").glob("*/children"):
                    todo += map(int, path.read_text().split())
            except OSError:
                continue
            found.append(pid)
        self._known.update(found)
        return found

    def resident_mib(self) -> float:
        """Resident memory of all of them."""
        kib = 0
        for pid in self.pids():
            status = Path(f"/proc/{pid}/status").read_text()
            kib += int(status.split("VmRSS:")[1].split()[0])
        return kib / 1024

    def tail(self, lines: int = 5) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def end(self) -> None:
        """Asks it to end, makes it, and makes those that it left behind."""
        self.pids()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self._known - {self.process.pid}:
            try:
                if os.getsid(pid) == self.process.pid:  # still one of ours, no other's with the same number
                    os.kill(pid, signal.SIGKILL)
            except OSError:
                pass


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def carried() -> str | None:
    """What `alone` was given, in the process that it made; loopback is up then."""
    if ALONE in os.environ:
        with socket.socket() as any_socket:  # SIOCSIFFLAGS, IFF_UP
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))
    return os.environ.pop(ALONE, None)


def alone(carry: str) -> None:
    """Becomes this program anew, in a network namespace whose only interface is loopback; returns where it cannot."""
    program = shutil.which("unshare")
    for way in (["--net"], ["--user", "--map-root-user", "--net"]) if program else ():
        command = [str(program), *way]
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            os.execve(command[0], [*command, sys.executable, "-m", "bench"], {**os.environ, ALONE: carry})


def described() -> dict[str, str]:
    """The machine, without its name."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    return {
        "processor": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
