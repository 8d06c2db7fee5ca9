"""Listening sockets: one per worker for TCP, one that all share otherwise.

The supervisor opens a TCP socket for each worker and address, all on the same port (SO_REUSEPORT). The kernel then
spreads connections evenly, and connections queued for a worker that dies are accepted by its successor. A unix socket
and sockets from systemd exist only once, so all workers accept from them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import field

from manallm_proxy.config.load import exposure_mistake, load, with_places
from manallm_proxy.config.model import Config, Listen
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.records import define
from manallm_proxy.http_server.aiohttp_server import Runner
from manallm_proxy.process import systemd

BACKLOG: Final = 4096
"""Max connections waiting to be accepted: all that arrive during a restart. Applied to systemd's sockets too."""

Address = tuple[Any, ...]
"""An address of the `socket` module, of either family."""


def name_of(address: object) -> str:
    """A socket's address as a URL or as ``unix:/path``."""
    if isinstance(address, tuple):
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"http://{host}:{address[1]}"
    return f"unix:{address}"


def drain_note(number: int, what: str, seconds: float) -> str:
    """``1 answer, at most 30 s; Ctrl-C again ends now``: what a drain waits for."""
    return f"{number} {what}{'' if number == 1 else 's'}, at most {seconds:g} s; Ctrl-C again ends now"


def cannot_listen(config: Config, error: OSError) -> str:
    """The message for a failure to listen: why, and what to do. The same for one process and for several workers."""
    where = config.listen.unix or f"{config.listen.host}:{config.listen.port}"
    if error.errno == errno.EADDRINUSE:
        nobody = "'manallm-proxy status' tells whether it is a proxy"
        other = (
            "end that, or choose another unix" if config.listen.unix else "end that, or choose another port (--port)"
        )
        return f"listen: {where} is in use by another program: {other}; {nobody}"
    if error.errno == errno.ENOTSOCK and config.listen.unix:
        what = "something that is no socket is there: move it, or choose another unix"
        return f"listen: cannot listen on {where}: {what}"
    if error.errno == errno.ENOENT and config.listen.unix:
        return f"listen: cannot listen on {where}: its folder is not there: make it, or choose another unix"
    if error.errno == errno.EADDRNOTAVAIL:
        what = "this machine has no such address now; 0.0.0.0 stands for all it has"
        return f"listen: cannot listen on {where}: {what}"
    why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    low = config.listen.unix is None and 0 < config.listen.port < 1024
    ports = "; ports below 1024 are for root" if error.errno == errno.EACCES and low else ""
    return f"listen: cannot listen on {where}: {why}{ports}"


def refuse_exposed(config: Config, passed: Sequence[socket.socket]) -> None:
    """Raises ConfigError if a socket from systemd exposes the proxy in a way that is not allowed for ``listen``."""
    for each in passed:
        if each.family in (socket.AF_INET, socket.AF_INET6):
            mistake = exposure_mistake(config, each.getsockname()[0])
            if mistake is not None:
                raise ConfigError((mistake,))


def reread(
    config: Config, environ: Mapping[str, str], host: str | None, port: int | None, passed: Sequence[socket.socket]
) -> Config:
    """Loads the files of `config` again. Raises ConfigError for mistakes, and for changes that need a restart."""
    new = load(config.path, environ, host, port, config.found)
    fixed = [
        *(
            f"listen.{key}"
            for key in ("host", "port", "unix")
            if getattr(new.listen, key) != getattr(config.listen, key)
        ),
        *(["limits.header"] if new.limits.header != config.limits.header else []),
    ]
    if fixed:
        raise with_places([f"{key}: cannot be changed by a reload; restart to change it" for key in fixed], new.path)
    refuse_exposed(new, passed)
    return new


@define(eq=False)
class Listeners:
    """The sockets of all workers. ``passed`` are systemd's, which win over ``listen``."""

    passed: list[socket.socket]
    _shared: list[socket.socket] = field(factory=list)
    _addresses: list[tuple[socket.AddressFamily, Address]] = field(factory=list)
    _own: dict[int, list[socket.socket]] = field(factory=dict)

    @classmethod
    def open(cls, config: Config, environ: Mapping[str, str]) -> Listeners:
        """Raises ConfigError, or OSError if it cannot listen on an address."""
        passed = systemd.listen_sockets(environ, os.getpid())
        if passed:
            refuse_exposed(config, passed)
            return cls(passed, passed)
        listen = config.listen
        if listen.unix is not None:
            return cls(passed, [_unix(listen.unix)])
        made = cls(passed)
        made._reserve(listen)
        return made

    @property
    def names(self) -> list[str]:
        """Addresses to show to people."""
        return [name_of(each.getsockname()) for each in self._shared] or [name_of(a) for _, a in self._addresses]

    def of(self, number: int) -> list[socket.socket]:
        """The sockets of worker `number`, opened if need be. Raises OSError if that fails."""
        if not self._addresses:
            return self._shared
        if number not in self._own:
            self._own[number] = [_listening(family, address) for family, address in self._addresses]
        return self._own[number]

    def close(self, number: int) -> None:
        """Closes the sockets of worker `number`: the kernel gives new connections to the other workers."""
        for each in self._own.pop(number, ()):
            each.close()

    def close_all(self, but: int | None = None) -> None:
        """Closes all sockets, or all that belong to workers other than `but`."""
        for number in set(self._own) - {but}:
            self.close(number)
        if but is None:
            for each in self._shared:
                each.close()

    def _reserve(self, listen: Listen) -> None:
        """Picks the port and opens the sockets of the first worker.

        With SO_REUSEPORT alone we could join the port of another proxy's workers, and each would get half of the
        other's connections. So a socket without it must be able to bind first.
        """
        for family, address in _resolved(listen.host, listen.port):
            probe = _listening(family, address, shared=False)
            with probe:
                self._addresses.append((family, probe.getsockname()))
        self.of(1)


def _resolved(host: str, port: int) -> Iterator[tuple[socket.AddressFamily, Address]]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    yield from dict.fromkeys((family, address) for family, _, _, _, address in found)


def _listening(family: socket.AddressFamily, address: Address, *, shared: bool = True) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        if shared:
            made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


async def listen(
    config: Config, runner: Runner, passed: Sequence[socket.socket], workers: Sequence[socket.socket] | None
) -> None:
    """Listens on a worker's own sockets, else those from systemd, else ``unix``, else host and port.

    Raises ConfigError for an exposed socket, OSError where it cannot, or if another process serves at ``unix``.
    """
    if workers is None:
        refuse_exposed(config, passed)
    if sockets := passed if workers is None else workers:
        for each in sockets:
            await runner.on_socket(each, BACKLOG)
    elif (path := config.listen.unix) is not None:
        refuse_displacing(path)
        await runner.on_path(path, BACKLOG)
    else:
        await runner.on_address(config.listen.host, config.listen.port, BACKLOG)


def refuse_displacing(path: str) -> None:
    """Raises OSError if a process listens on the unix socket at `path`, or if something else is there. A socket without
    a process may be replaced."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.ENOTSOCK, "something that is no socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # a process listens, but its queue is full
            pass
        except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError):
            return
    raise OSError(errno.EADDRINUSE, "another process serves there")


def _unix(path: str) -> socket.socket:
    refuse_displacing(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # left behind by a dead process
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.bind(path)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made
