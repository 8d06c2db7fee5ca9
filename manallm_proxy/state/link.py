"""The connection to Redis. It never delays requests for long: each use has a time budget.

After one failure all uses fail immediately, while a background task pings the server until it answers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

from attrs import field

from manallm_proxy.contract.events import Observer, StateChanged
from manallm_proxy.contract.records import define

T = TypeVar("T")

BUDGET: Final = 0.05
"""Max seconds of one use."""
BUSY: Final = 0.45
"""Max seconds beyond that while this process is busy, with hundreds of requests at once that all ask the server."""
AT_A_TIME: Final = 8
"""Max concurrent uses, and so connections; others wait within their budget."""
AGAIN: Final = 0.25
"""Seconds between two pings of a server that is down."""
SOON: Final = 0.03
"""Seconds until the next ping if the last answer was only late."""
CLOSING: Final = 1.0
"""Seconds that a client's connections may take to close; no request waits for them."""
_NO_ENTRY: Final = "refuses the user or the password"


def longest() -> float:
    """Max seconds of one use by a process that is busy."""
    return BUDGET + max(BUSY, BUDGET)


@contextlib.asynccontextmanager
async def _budget(more: float) -> AsyncIterator[None]:
    """Raises TimeoutError after BUDGET seconds, and `more`; up to BUSY seconds later if this process is busy: then the
    answer may have arrived unread, or the command is not sent yet, and it is not the server that keeps anybody."""
    loop = asyncio.get_running_loop()
    due, spent = loop.time() + BUDGET + more, time.process_time()
    last = due + longest() - BUDGET
    timer: asyncio.TimerHandle | None = None
    async with asyncio.timeout(None) as limit:

        def check() -> None:
            nonlocal due, spent, timer
            now, before = loop.time(), spent
            spent = time.process_time()
            if now < last and (now - due > BUDGET / 5 or spent - before > BUDGET / 2):
                due = now + BUDGET
                timer = loop.call_at(due, check)
            else:
                limit.reschedule(now)

        timer = loop.call_at(due, check)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()


class ServerUnavailable(Exception):
    """The server cannot be reached, or did not answer in time."""


class Refused(Exception):
    """The server answered the command with an error. ``str()``: the error's first word, such as ``OOM``."""


@define(eq=False)
class Link:
    """``name``: the server's address without a password; ``open_client``: makes a new client."""

    name: str
    open_client: Callable[[], Any]
    observe: Observer
    is_well: bool = True
    _client: Any = None
    _turns: asyncio.Semaphore = field(factory=lambda: asyncio.Semaphore(AT_A_TIME))
    _reported: str = ""
    """Why it was reported as away; empty: it was not."""
    _refusals: set[str] = field(factory=set)
    _asking: asyncio.Task[None] | None = None
    _leaving: set[asyncio.Task[None]] = field(factory=set)
    """Clients that are being closed."""
    _closed: bool = False

    async def use(self, command: Callable[[Any], Awaitable[T]], more: float = 0.0) -> T:
        """What `command` returns, within the budget and `more` seconds. Raises ServerUnavailable, and Refused if the
        server answers with an error."""
        if not self.is_well or self._closed:
            raise ServerUnavailable
        client: Any = None
        clock, waited = asyncio.get_running_loop().time, 0.0
        began = clock()
        try:
            async with _budget(more), self._turns:
                waited = clock() - began
                if not self.is_well or self._closed:  # while it waited for its turn
                    raise ServerUnavailable
                client = self._client
                if client is None:
                    client = self._client = self.open_client()
                return await command(client)
        except Exception as error:  # the library's own, and whatever a server can make of it
            word = _refusal(error)
            if word is not None:
                raise Refused(word) from None
            if client is not None and client is self._client and waited < BUDGET / 2:  # else it had no time to answer
                self._suspect()
            raise ServerUnavailable from None
        finally:
            if client is not None and client is not self._client:  # left meanwhile: it may have connected since
                self._leave(client)

    def report_refusal(self, refusal: str) -> None:
        """Reports a command that the server refused, once for each reason."""
        if refusal not in self._refusals:
            self._refusals.add(refusal)
            self.observe(StateChanged(self.name, is_well=False, detail=f"refuses our commands ({refusal})"))

    async def why_down(self, seconds: float) -> str | None:
        """Why the server does not answer a ping within `seconds`, in our own words; None if it does."""
        client: Any = None
        try:
            async with asyncio.timeout(seconds):
                client = self.open_client()
                await client.ping()
        except Exception as error:
            return _why(error, seconds)
        finally:
            self._leave(client)
        return None

    async def close(self) -> None:
        """Harmless when repeated."""
        self._closed = True
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])  # it leaves the client that it was asking with
        self._leave(self._client)
        self._client = None
        if self._leaving:
            await asyncio.wait(self._leaving)

    def _suspect(self) -> None:
        """Marks the server as down until it answers a ping. Then it gets a new client, since this one's connections may
        be dead."""
        self.is_well = False
        self._leave(self._client)
        self._client = None
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        """Pings until an answer comes in time. The failure that led here is not reported, since our own loop may have
        been late; a failed ping is."""
        client: Any = None
        pause = SOON
        while True:
            client, error = await self._answering(client)
            if self._closed:  # whose cancellation the library may have taken for a failure of its own
                self._leave(client)
                return
            if error is None:
                break
            why = _why(error)
            if not self._reported or (why == _NO_ENTRY and why != self._reported):  # which goes by no waiting
                self._reported = why
                self.observe(StateChanged(self.name, is_well=False, detail=why))
            try:
                await asyncio.sleep(pause)
            except asyncio.CancelledError:
                self._leave(client)
                raise
            pause = SOON if client is not None else AGAIN
        self._client, self.is_well = client, True
        self._refusals.clear()
        if self._reported:
            self._reported = ""
            self.observe(StateChanged(self.name, is_well=True))

    async def _answering(self, client: Any) -> tuple[Any, Exception | None]:
        """A client that the server answers (`client`, a new one, or None), and why the server is not well.

        One that answers too late keeps its client: what took long may have been the way there.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(AGAIN):
                client = client if client is not None else self.open_client()
                await client.ping()
        except BaseException as error:
            self._leave(client)
            if isinstance(error, Exception):
                return None, error
            raise
        return client, TimeoutError() if clock() - began > BUDGET else None

    def _leave(self, client: Any) -> None:
        """Closes the client in the background."""
        if client is not None:
            task = asyncio.get_running_loop().create_task(_close(client))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)


async def _close(client: Any) -> None:
    """Closes the client within CLOSING seconds, whatever the server does."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSING):
            await client.aclose()


def _refusal(error: Exception) -> str | None:
    """The first word of an error that the server answered with; None for any other exception. Classes are recognised
    by name, since the library may not be installed."""
    names = {each.__name__ for each in type(error).__mro__}
    if "ResponseError" not in names or names & {"AuthenticationError", "ClusterError"}:
        return None
    if "NoPermissionError" in names:
        return "NOPERM"
    if "OutOfMemoryError" in names:
        return "OOM"
    if "ReadOnlyError" in names:
        return "READONLY"
    word = str(error).partition(" ")[0]
    return word if word.isalpha() and word.isupper() and len(word) <= 16 else "ERR"


def _why(error: Exception, seconds: float | None = None) -> str:
    """The failure in our own words, since the library's may contain an address with a password. `seconds`: what it had
    to answer, if that was not BUDGET."""
    names: set[str] = set()
    link: BaseException | None = error
    while link is not None:
        names |= {each.__name__ for each in type(link).__mro__}
        link = link.__cause__
    if names & {"AuthenticationError", "AuthorizationError"}:
        return _NO_ENTRY
    if names & {"TimeoutError"}:
        return f"no answer within {(BUDGET if seconds is None else seconds) * 1000:g} ms"
    if names & {"ConnectionError", "OSError"}:
        return "cannot be reached"
    if names & {"RedisClusterException", "ClusterError"}:
        return "is no cluster"
    if names & {"InvalidResponse"}:
        return "what answers there is no Redis"
    if names & {"ResponseError"}:
        if "DB index" in str(error):
            return "refuses the number of the database"
        return "does not know our commands: is it what the address says?"
    return type(error).__name__
