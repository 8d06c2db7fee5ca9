"""What is to be given back and counted in Redis: nobody waits for it, and nothing of it is lost or told twice.

What comes while one batch is on its way becomes the next one. A batch has a number, by which the server knows one that
it has had; so one whose answer was lost is sent again. While the server is away, what is to be told is added up.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.state.link import AGAIN, Link, Refused, ServerUnavailable
from manallm_proxy.state.scripts import SETTLE, name_of

REFUSED_AGAIN: Final = 1.0
"""Seconds after which a server that refused a batch is told it again."""
WINDOW: Final = 60.0
"""Seconds after which tokens of a minute matter to nobody."""
LAST: Final = 1.0
"""Seconds that the end of the process waits for what is still to be told."""

Totals = tuple[int, int, int, int]
"""Spent in a day and in a month: billionths of USD, tokens; USD, tokens."""
NOTHING: Final[Totals] = (0, 0, 0, 0)


@define(eq=False)
class Batch:
    """Added up. ``costs``: by account, day and month."""

    passed: dict[str, list[str]] = field(factory=dict)
    """Requests that passed without the server, by window."""
    undone: list[tuple[tuple[str, ...], str]] = field(factory=list)
    """What was asked for and may have been done though nobody waited: where, and under which name."""
    done: list[str] = field(factory=list)
    """What was asked for is settled, so that nobody has to know its name any more."""
    windows: dict[tuple[str, int], int] = field(factory=dict)
    windows_at: float = 0.0
    """When the last one of ``windows`` came."""
    holds: dict[tuple[str, int], list[int]] = field(factory=dict)
    costs: dict[tuple[str, int, int], list[int]] = field(factory=dict)
    number: str = ""

    def __bool__(self) -> bool:
        return bool(self.windows or self.holds or self.costs or self.passed or self.undone or self.done)

    def add_cost(self, account: str, day: int, month: int, usd: int, tokens: int) -> None:
        _add(self.costs, (account, day, month), usd, tokens)

    def release(self, account: str, minute: int, usd: int, tokens: int) -> None:
        _add(self.holds, (account, minute), usd, tokens)

    def add_tokens(self, window: str, tick: int, more: int, now: float) -> None:
        """`more` (or less) than were taken in `tick`; of more, only the number matters."""
        self._forget(now)
        key = (window, tick if more < 0 else 0)
        self.windows[key] = self.windows.get(key, 0) + more

    def add_request(self, window: str, member: str, now: float) -> None:
        """One passed."""
        self._forget(now)
        self.passed.setdefault(window, []).append(member)

    def _forget(self, now: float) -> None:
        """What nobody counts any more."""
        if now - self.windows_at >= WINDOW:
            self.windows.clear()
            self.passed.clear()
        self.windows_at = now

    def request(self, floor: Callable[[str, int, int], Totals]) -> tuple[list[str], str]:
        """Names, and the argument of `SETTLE`. Names come from the keys' own, see `name_of`."""
        names: dict[str, int] = {}

        def at(name: str) -> int:
            return names.setdefault(name, len(names) + 2)

        content = {
            "number": self.number,
            "passed": [[at(name), members] for name, members in self.passed.items()],
            "undone": [[[at(name) for name in names], id_] for names, id_ in self.undone],
            "done": self.done,
            "windows": [[at(name), tick, more] for (name, tick), more in self.windows.items()],
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
    """``floor``: what is known to have been spent by an account at least, without what is still to be told here.
    ``learn`` gets an account, a day, a month, and what the server says of them."""

    link: Callable[[], Link | None]
    clock: Callable[[], float]
    floor: Callable[[str, int, int], Totals]
    learn: Callable[[str, int, int, Totals], None]
    next: Batch = field(factory=Batch)
    """What comes is added to this."""
    _sent: Batch | None = None
    sender: str = field(factory=lambda: name_of("sender", secrets.token_hex(16)))
    """Under this name the server knows what this process has asked for."""
    _numbers: int = 0
    _sending: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether the server has confirmed all that it was told."""
        return self._sent is None and not self.next

    def unconfirmed(self, account: str) -> Iterable[tuple[int, list[int]]]:
        """Day, USD and tokens of what the server does not know, or has not confirmed yet."""
        for batch in (self._sent, self.next):
            for (name, day, _), amounts in batch.costs.items() if batch is not None else ():
                if name == account:
                    yield day, amounts

    def released(self, account: str) -> tuple[int, int]:
        """USD and tokens that are given back, as far as the server has not confirmed it yet."""
        usd = tokens = 0
        for batch in (self._sent, self.next):
            for (name, _), amounts in batch.holds.items() if batch is not None else ():
                if name == account:
                    usd, tokens = usd + amounts[0], tokens + amounts[1]
        return usd, tokens

    def new_id(self) -> str:
        """A name that this process has not used."""
        self._numbers += 1
        return str(self._numbers)

    def undo(self, names: Iterable[str], id_: str) -> None:
        """What was asked for under the name may have been done."""
        self.next.undone.append((tuple(names), id_))
        self.send()

    def send(self) -> None:
        """Soon."""
        if self._sending is None or self._sending.done():
            self._sending = asyncio.get_running_loop().create_task(self._send_all())

    async def close(self) -> None:
        """Tells the rest, if the server is there."""
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
            if self.clock() - batch.windows_at >= WINDOW:
                batch.windows.clear()
                batch.passed.clear()
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
        names, argument = batch.request(self.floor)
        names.insert(0, self.sender)
        return await link.use(lambda client: SETTLE.run(client, names, argument))
