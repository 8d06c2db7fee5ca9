"""Releases reservations and counts spending in Redis, in the background, without loss and without counting twice.

Changes that arrive while one batch is being sent form the next one. Each batch has a number, by which the server
recognises a repeated one, so a batch whose answer was lost is sent again. While the server is down, changes add up.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.state.link import AGAIN, Link, Refused, ServerUnavailable
from manallm_proxy.state.scripts import SETTLE, TICK, name_of

REFUSED_AGAIN: Final = 1.0
"""Seconds until a refused batch is sent again."""
WINDOW: Final = 60.0
"""Seconds after which the tokens of a rate-limit window no longer count."""
LAST: Final = 1.0
"""Max seconds that process exit waits for unsent changes."""

Totals = tuple[int, int, int, int]
"""(USD in billionths, tokens) spent in a day, then the same for its month."""
NOTHING: Final[Totals] = (0, 0, 0, 0)


@define(eq=False)
class Batch:
    """Accumulated changes. ``costs``: by account, day and month."""

    passed: deque[tuple[float, str, str]] = field(factory=deque)
    """Requests let through without asking the server: when, in which window, under which name. Oldest first."""
    undone: list[tuple[tuple[str, ...], str]] = field(factory=list)
    """Operations to undo, which the server may have done after we stopped waiting: names, and id."""
    done: list[str] = field(factory=list)
    """Ids of settled operations, which the server can forget."""
    exceeded: deque[tuple[float, str, int]] = field(factory=deque)
    """Tokens above what was reserved: when, of which window, how many. Oldest first."""
    unused: dict[tuple[str, int], int] = field(factory=dict)
    """Tokens that were reserved in vain, by window and tick."""
    holds: dict[tuple[str, int], list[int]] = field(factory=dict)
    costs: dict[tuple[str, int, int], list[int]] = field(factory=dict)
    number: str = ""

    def __bool__(self) -> bool:
        windows = self.passed or self.exceeded or self.unused
        return bool(windows or self.holds or self.costs or self.undone or self.done)

    def add_cost(self, account: str, day: int, month: int, usd: int, tokens: int) -> None:
        _add(self.costs, (account, day, month), usd, tokens)

    def release(self, account: str, minute: int, usd: int, tokens: int) -> None:
        _add(self.holds, (account, minute), usd, tokens)

    def add_tokens(self, window: str, tick: int, more: int, now: float) -> None:
        """Corrects a reservation of `tick` by `more` tokens (negative: fewer). An excess counts from now."""
        if more < 0:
            self.unused[window, tick] = self.unused.get((window, tick), 0) - more
        else:
            self.forget(now)
            self.exceeded.append((now, window, more))

    def add_request(self, window: str, member: str, now: float) -> None:
        """Counts one request that was let through."""
        self.forget(now)
        self.passed.append((now, window, member))

    def forget(self, now: float) -> None:
        """Drops entries that no longer count: the server may be away for hours."""
        for entries in (self.passed, self.exceeded):
            while entries and now - entries[0][0] >= WINDOW:
                entries.popleft()

    def request(self, floor: Callable[[str, int, int], Totals], now: float) -> tuple[list[str], str]:
        """The names and the argument for `SETTLE`. Names of accounts are hashed, see `name_of`."""
        names: dict[str, int] = {}

        def at(name: str) -> int:
            return names.setdefault(name, len(names) + 2)

        content = {
            "number": self.number,
            "passed": [[at(name), member, round((now - then) * 1e6)] for then, name, member in self.passed],
            "undone": [[[at(name) for name in names], id_] for names, id_ in self.undone],
            "done": self.done,
            "exceeded": [[at(name), more, int((now - then) / TICK)] for then, name, more in self.exceeded],
            "unused": [[at(name), tick, less] for (name, tick), less in self.unused.items()],
            "holds": [[at(_account(name)), minute, *amounts] for (name, minute), amounts in self.holds.items()],
            "costs": [
                [at(_account(name)), day, month, floor(name, day, month), *amounts]
                for (name, day, month), amounts in self.costs.items()
            ],
        }
        return list(names), msgspec.json.encode(content).decode()


def _account(name: str) -> str:
    return name_of("account", name)


def _add(rows: dict[Any, list[int]], key: Any, usd: int, tokens: int) -> None:
    row = rows.setdefault(key, [0, 0])
    row[0] += usd
    row[1] += tokens


@define(eq=False)
class Settlements:
    """``floor``: min totals of an account's day and month as known here, without unconfirmed changes. ``learn``: called
    with an account, a day, a month, and the server's totals of them."""

    link: Callable[[], Link | None]
    clock: Callable[[], float]
    floor: Callable[[str, int, int], Totals]
    learn: Callable[[str, int, int, Totals], None]
    next: Batch = field(factory=Batch)
    """The batch to which new changes are added."""
    _sent: Batch | None = None
    sender: str = field(factory=lambda: name_of("sender", secrets.token_hex(16)))
    """The name under which the server files this process's operations."""
    _numbers: int = 0
    _sending: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether the server has confirmed every change."""
        return self._sent is None and not self.next

    def unconfirmed(self, account: str) -> Iterable[tuple[int, list[int]]]:
        """(day, [USD in billionths, tokens]) of changes that the server has not confirmed yet."""
        for batch in (self._sent, self.next):
            for (name, day, _), amounts in batch.costs.items() if batch is not None else ():
                if name == account:
                    yield day, amounts

    def released(self, account: str) -> tuple[int, int]:
        """Released USD and tokens that the server has not confirmed yet."""
        usd = tokens = 0
        for batch in (self._sent, self.next):
            for (name, _), amounts in batch.holds.items() if batch is not None else ():
                if name == account:
                    usd, tokens = usd + amounts[0], tokens + amounts[1]
        return usd, tokens

    def new_id(self) -> str:
        """An id that this process has not used yet."""
        self._numbers += 1
        return str(self._numbers)

    def undo(self, names: Iterable[str], id_: str) -> None:
        """Undoes the operation `id_`, which the server may or may not have done."""
        self.next.undone.append((tuple(names), id_))
        self.send()

    def send(self) -> None:
        """Starts sending, unless a batch is being sent."""
        if self._sending is None or self._sending.done():
            self._sending = asyncio.get_running_loop().create_task(self._send_all())

    async def close(self) -> None:
        """Sends the rest, if the server is up."""
        link = self.link()
        if self._sending is not None and link is not None and link.is_well:
            await asyncio.wait([self._sending], timeout=LAST)
        if self._sending is not None:
            self._sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sending

    async def _send_all(self) -> None:
        while self._sent is not None or self.next:
            if self._sent is None:
                self._sent, self.next = self.next, Batch()
                self._sent.number = self.new_id()
            batch, link = self._sent, self.link()
            batch.forget(self.clock())
            if link is None:  # a reload has taken it away
                self._sent, self.next = None, Batch()
                return
            try:
                totals = await self._tell(link, batch)
            except ServerUnavailable:
                await asyncio.sleep(AGAIN)
            except Refused as refusal:
                link.report_refusal(str(refusal))
                await asyncio.sleep(REFUSED_AGAIN)
            else:
                self._sent = None
                for at, (account, day, month) in enumerate(batch.costs if len(totals) == 4 * len(batch.costs) else ()):
                    du, dt, mu, mt = totals[4 * at : 4 * at + 4]
                    self.learn(account, day, month, (du, dt, mu, mt))

    async def _tell(self, link: Link, batch: Batch) -> list[int]:
        names, argument = batch.request(self.floor, self.clock())
        names.insert(0, self.sender)
        return await link.use(lambda client: SETTLE.run(client, names, argument))
