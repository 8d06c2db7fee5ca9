"""Runs work on large requests and answers in threads, so that it does not delay other requests.

That does not make it cheaper, but the event loop can run meanwhile. The threads are our own, and few: many large
requests wait for each other instead of competing with the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

from manallm_proxy.contract.records import define
from manallm_proxy.openai.character_counts import number_of
from manallm_proxy.openai.deferred_free import free_in_pieces, run_then_free

_P = ParamSpec("_P")
_T = TypeVar("_T")

LARGE_BYTES: Final = 256 * 1024
LARGE_PARTS: Final = 1000
"""From this many objects and lists on, translating a request takes milliseconds, however few bytes it has."""
REQUEST_ELEMENTS: Final = 3000
"""From this many objects, lists and commas on, translating a request takes milliseconds, however few bytes it has."""
ANSWER_ELEMENTS: Final = 8000
"""The same limit for an answer: five vectors of 1536 numbers are below it."""
COLLECTS_AGAIN: Final = 2.0
"""Seconds after large work until full collections resume; meanwhile its results are written and freed."""
YOUNG: Final = 4000
"""New objects after which they are looked at, a millisecond's worth: most of them are that work's own, and stay."""
NEVER: Final = 10**6
"""Collections of young objects before older ones are looked at."""
TURN: Final = 0.0001
"""Seconds that the loop waits for the interpreter while a thread has it. It needs it several times for one turn: uvloop
takes it anew for each callback."""
_ROUNDING: Final = 5e-7
"""Seconds: CPython cuts the turn to whole microseconds, so that to set it to what it is may make it shorter."""
_THREADS: Final = ThreadPoolExecutor(2, thread_name_prefix="large")
"""Started on first use."""


def is_large(body: bytes, elements: int = REQUEST_ELEMENTS) -> bool:
    """Whether `body` is large: by bytes, or by possible elements. Commas in texts count, to avoid parsing."""
    size = len(body)
    if size > LARGE_BYTES:
        return True
    if size <= 2 * LARGE_PARTS:
        return False
    opened = number_of(b"{", body, LARGE_PARTS)
    if opened > LARGE_PARTS or size <= elements:
        return opened > LARGE_PARTS
    return opened + number_of(b",", body, elements) + number_of(b"[", body, elements) > elements


def are_large(items: Sequence[bytes]) -> bool:
    """Whether `items`, JSON objects with at least two nested ones each, are large in total: by bytes, or by number."""
    return len(items) > LARGE_PARTS // 3 or sum(map(len, items)) > LARGE_BYTES


def is_long(pieces: Sequence[str]) -> bool:
    """Whether joining `pieces` and writing the text takes milliseconds."""
    return len(pieces) > LARGE_PARTS or sum(map(len, pieces)) > LARGE_BYTES


@define
class _Collector:
    """The interpreter while there is large work, and for a while after it.

    Its cycle collector looks at young objects only: the older ones are then mostly that work's own, a million of them,
    and to look at them stops everybody. No cycle is made of them, and those that others make can wait. And threads take
    turns oftener.
    """

    running: int = 0
    _usual: tuple[int, int, int] | None = None
    """The thresholds otherwise."""
    _turn: float = 0.0
    """Seconds of a thread's turn otherwise."""
    _timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self.running += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._usual is None:
            self._usual = gc.get_threshold()
            gc.set_threshold(min(YOUNG, self._usual[0]), NEVER, self._usual[2])
            self._turn = sys.getswitchinterval()
            sys.setswitchinterval(min(TURN, self._turn))

    def end(self, loop: asyncio.AbstractEventLoop) -> None:
        self.running -= 1
        if not self.running:
            self._timer = loop.call_later(COLLECTS_AGAIN, self.restore)

    def restore(self) -> None:
        self._timer = None
        if self._usual is not None and not self.running:
            usual, self._usual = self._usual, None
            if gc.get_count()[1] > usual[1] > 0:
                gc.collect(1)  # it is due, and little is left of that work: later it might meet the next one's objects
            gc.set_threshold(*usual)
            sys.setswitchinterval(self._turn + _ROUNDING)


collector: Final = _Collector()


async def offload(large: bool, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """The result of `function`, run in a thread if its work is `large`, else here."""
    if not large:
        return function(*args, **kwargs)
    loop = asyncio.get_running_loop()
    collector.begin()
    try:
        return await loop.run_in_executor(_THREADS, lambda: run_then_free(function, *args, **kwargs))
    finally:
        collector.end(loop)


def free_aside(things: list[Any], large: bool) -> None:
    """`free_in_thread` if `things` are large; else they go with their list."""
    if large:
        free_in_thread(things)


def free_in_thread(things: list[Any]) -> None:
    """Frees `things`, and what only they refer to, in a thread. The caller must drop its references at once."""
    with contextlib.suppress(RuntimeError):  # the process is exiting
        _THREADS.submit(free_in_pieces, things)
