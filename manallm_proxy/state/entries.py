"""Entries in Redis: sealed with a digest, so that no other data is mistaken for one, and written in the background."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.state.link import Link, Refused, ServerUnavailable
from manallm_proxy.state.scripts import READ

LARGEST: Final = 4 * 2**20
"""Max bytes of an entry; no more are read, whatever is stored under its name."""
PART: Final = 128 * 1024
"""Bytes that are read at once: on a network of 100 Mbit/s, this takes 10 ms."""
SLOWEST: Final = 10 * 10**6
"""Bytes per second that a write may take in addition to the time of one use. No request waits for it."""
WAITING: Final = 16 * 2**20
"""Max bytes waiting to be written; above that nothing more is accepted."""
_DIGEST: Final = 16


def seal(name: str, content: bytes) -> bytes:
    """The entry for `content` under `name`: a digest of both, then `content`."""
    return _digest(name, content) + content


def unseal(name: str, entry: bytes) -> bytes:
    """The content of an entry. Raises ValueError if `seal` did not make it, or made it for another name."""
    content = entry[_DIGEST:]
    if len(entry) < _DIGEST or _digest(name, content) != entry[:_DIGEST]:
        raise ValueError("not ours, or not whole")
    return content


def _digest(name: str, content: bytes) -> bytes:
    key = hashlib.sha256(name.encode()).digest()
    return hashlib.blake2b(content, digest_size=_DIGEST, key=key).digest()


async def _read_part(name: str, at: int, end: int, lifetime: int, client: Any) -> list[Any]:
    return await READ.run(client, (name,), at, end, lifetime)


async def read(link: Link, name: str, lifetime: int = 0) -> tuple[bytes, int]:
    """The entry under `name` (``b""``: none) and its remaining milliseconds; sets its lifetime to `lifetime`.

    A long one comes in parts, each of which has the time of one use. Raises what `Link.use` does.
    """
    parts: list[bytes] = []
    whole = at = left = 0
    while not parts or at < min(whole, LARGEST + 1):
        end = min(at + PART, LARGEST + 1) - 1
        found = await link.use(partial(_read_part, name, at, end, lifetime))
        if [type(each) for each in found] != [bytes, int, int] or (parts and found[2] != whole) or not found[0]:
            return b"", 0  # none, or another one by now
        parts.append(found[0])
        at, left, whole = at + len(found[0]), found[1], found[2]
    return b"".join(parts), left


@define(eq=False)
class WriteBehind:
    """Runs commands in the background."""

    link: Link
    _waiting: int = 0
    _tasks: set[asyncio.Task[None]] = field(factory=set)

    def send(
        self, command: Callable[[Any], Awaitable[Any]], size: int = 0, done: Callable[[], None] = lambda: None
    ) -> bool:
        """Starts `command`, which writes `size` bytes; `done` is called when it has ended, whatever its outcome.

        Returns False without starting it while the server is down or too many bytes are waiting.
        """
        if not self.link.is_well or size > LARGEST or self._waiting + size > WAITING:
            return False
        self._waiting += size

        async def run() -> None:
            try:
                await self.link.use(command, size / SLOWEST)
            except ServerUnavailable:
                pass
            except Refused as refusal:
                self.link.report_refusal(str(refusal))
            finally:
                self._waiting -= size
                done()

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def close(self) -> None:
        """Gives started commands a second to end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
