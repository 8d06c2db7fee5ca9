"""Sends spending to the other workers and writes it to the file, in the background: no request waits for it.

1. Other workers get it after `SHARE_AFTER` seconds, the file after `WRITE_AFTER`. A killed process loses that much; one
   that ends writes first.
2. One process writes: the only one, or worker 1. At its end the supervisor writes the spending of all once more.
3. A file that cannot be written fails no request: it is reported once, and retried with the next change and at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from manallm_proxy.config.model import Config
from manallm_proxy.contract.events import Observer, SpendFileFailed
from manallm_proxy.contract.records import define
from manallm_proxy.gateway.own_thread import in_thread
from manallm_proxy.process import spend_file
from manallm_proxy.routing.ledger import Ledger, Row


class Link(Protocol):
    """A worker's connection to the others."""

    @property
    def number(self) -> int:
        """The worker's number."""

    def spent(self, rows: list[Row]) -> None:
        """Sends `rows` to the other workers."""


SHARE_AFTER: Final = 0.1
WRITE_AFTER: Final = 0.5
LAST_WRITE: Final = 2.0
"""Max seconds that process exit waits for the file."""


@define(eq=False)
class SpendKeeper:
    """``path`` None: another process writes. ``share`` None: there are no other workers."""

    ledger: Ledger
    observe: Observer
    path: Path | None = None
    share: Callable[[list[Row]], None] | None = None
    _sharing: asyncio.TimerHandle | None = None
    _writing_at: asyncio.TimerHandle | None = None
    _writing: asyncio.Task[None] | None = None
    _failed: bool = False

    def __attrs_post_init__(self) -> None:
        self.ledger.changed = self._changed

    def receive(self, rows: list[Row], recovered: list[Row] | None) -> None:
        """Adds `rows` of another worker; with `recovered` (spent before any worker began), the totals of all."""
        if recovered is not None:
            self.ledger.recovered = recovered
        elif self.ledger.server_counts():  # then the server counts for all
            return
        self.ledger.merge(rows)
        self._write_later()

    def _changed(self) -> None:
        # 1
        if self.share is not None and self._sharing is None:
            self._sharing = asyncio.get_running_loop().call_later(SHARE_AFTER, self._share_now)
        self._write_later()

    def _share_now(self) -> None:
        self._sharing = None
        if self.share is not None and (rows := self.ledger.take_unshared()):
            self.share(rows)

    def _write_later(self) -> None:
        if self.path is not None and self._writing_at is None:
            self._writing_at = asyncio.get_running_loop().call_later(WRITE_AFTER, self._write_now)

    def _write_now(self) -> None:
        self._writing_at = None
        if self._writing is not None and not self._writing.done():
            self._write_later()  # no second thread for a disk that hangs
        else:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        assert self.path is not None
        try:
            await in_thread(partial(_write_rows, self.path, self.ledger.rows_later()))
        except OSError as error:
            # 3
            if not self._failed:
                self.observe(SpendFileFailed(str(self.path), f"it cannot be written ({error.strerror or 'I/O error'})"))
            self._failed = True
        else:
            self._failed = False

    async def close(self) -> None:
        """Sends and writes the rest."""
        self.ledger.changed = None
        dirty = self._writing_at is not None
        for timer in (self._sharing, self._writing_at):
            if timer is not None:
                timer.cancel()
        self._share_now()
        try:
            async with asyncio.timeout(LAST_WRITE):
                if self._writing is not None:
                    await self._writing
                if dirty or self._failed:
                    await self._write()
        except TimeoutError:
            self.observe(SpendFileFailed(str(self.path), "the disk does not answer"))


def keeper_of(config: Config, environ: Mapping[str, str], observe: Observer, link: Link | None) -> SpendKeeper:
    """The keeper of this process, with earlier spending recovered; a worker gets that from its supervisor."""
    path, ledger = spend_file.file_path(config, environ), Ledger()
    if link is not None:
        return SpendKeeper(ledger, observe, path if link.number == 1 else None, link.spent)
    recover(ledger, path, observe)
    return SpendKeeper(ledger, observe, path)


def recover(ledger: Ledger, path: Path | None, observe: Observer) -> None:
    """Adds the spending in the file at `path` to `ledger`. Reports a bad file."""
    if path is None:
        return
    rows, wrong = spend_file.read(path)
    ledger.recover(rows)
    if wrong is not None:
        observe(SpendFileFailed(str(path), wrong))


def keep(ledger: Ledger, path: Path | None) -> None:
    """Writes all spending when the supervisor ends: its workers are gone, so blocking is fine."""
    if path is not None and (rows := ledger.rows()):
        with contextlib.suppress(OSError):  # worker 1 has reported the failure
            spend_file.write(path, rows)


def _write_rows(path: Path, rows: Callable[[], list[Row]]) -> None:
    spend_file.write(path, rows())
