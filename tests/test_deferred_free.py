"""What is large is freed piece by piece, and only what nobody else holds."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import traceback
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest

from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.openai import deferred_free, large
from manallm_proxy.openai.deferred_free import free_in_pieces, free_later
from manallm_proxy.openai.large import collector, free_in_thread, offload
from tests.waiting import until


class Thing:
    """Counts how many of its kind are freed."""

    freed = 0

    def __init__(self, *held: Any) -> None:
        self.held = held

    def __del__(self) -> None:
        Thing.freed += 1


def made(number: int) -> dict[str, Any]:
    """Lists, tuples, dicts and objects in each other, with `number` things in all."""
    things = [{"a": [Thing()], "b": (1, {"c": Thing(Thing())})} for _ in range(number // 4)]
    return {"x": tuple(things), "y": [Thing() for _ in range(number // 4)]}


def test_all_of_it_goes_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps, where others may run, a piece is freed at most; nothing is left."""
    monkeypatch.setattr(deferred_free, "_PIECE", 5)
    Thing.freed, steps = 0, [0]

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code is free_in_pieces.__code__:
            steps.append(Thing.freed)
        return trace

    things = [made(4000)]
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        free_in_pieces(things)
    finally:
        sys.settrace(before)
    assert things == []
    assert Thing.freed == 4000
    assert max(b - a for a, b in pairwise(steps)) <= 5


def test_what_holds_nothing_goes_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts and numbers, which the collector does not know."""
    gone: list[int] = []

    class Held(list[Any]):
        def __delitem__(self, place: Any) -> None:
            before = len(self)
            super().__delitem__(place)
            gone.append(before - len(self))

        clear = None  # type: ignore[assignment]  # would free all

    monkeypatch.setattr(deferred_free, "get_referents", lambda thing: Held(gc.get_referents(thing)))
    free_in_pieces([[f"text {n}" for n in range(3000)], {f"key {n}": float(n) for n in range(2000)} | {"x": []}])
    assert sum(gone) >= 5000
    assert max(gone) <= deferred_free._PIECE


def test_what_others_hold_is_theirs() -> None:
    """It stays as it is, with all that it holds."""
    Thing.freed = 0
    inner = {"a": [Thing(), Thing()]}
    wanted = repr(inner)
    free_in_pieces([[inner, Thing()], (inner,), "text", 5, None, Thing])
    assert Thing.freed == 1
    assert repr(inner) == wanted


async def test_work_in_a_thread_frees_what_it_was_done_with() -> None:
    """In the same thread, also where it fails; elsewhere nothing is held for it."""
    Thing.freed = 0
    free_later(Thing())
    assert Thing.freed == 1

    def work(fails: bool) -> int:
        free_later(made(400))
        if fails:
            raise ValueError("no")
        return Thing.freed

    assert await offload(True, work, False) == 1, "it lives as long as the work"
    assert Thing.freed == 401
    with pytest.raises(ValueError, match="no"):
        await offload(True, work, True)
    assert Thing.freed == 801
    free_in_thread([made(400)])
    await until(lambda: Thing.freed == 1201)


def test_the_collector_leaves_large_work_alone() -> None:
    """While any runs, and for a while after it, only young objects are looked at, and threads take turns oftener."""

    class Loop:
        def __init__(self) -> None:
            self.due: list[Any] = []

        def call_later(self, seconds: float, function: Any) -> Any:
            self.due.append((seconds, function))
            return self

        def cancel(self) -> None:
            self.due.pop()

    loop: Any = Loop()
    usual, turn = gc.get_threshold(), sys.getswitchinterval()
    seen = large._Collector()
    seen.begin()
    seen.begin()
    assert gc.get_threshold() == (min(usual[0], large.YOUNG), large.NEVER, usual[2])
    assert sys.getswitchinterval() == pytest.approx(min(large.TURN, turn), abs=2e-6)
    seen.end(loop)
    assert loop.due == []
    seen.end(loop)
    seen.begin()
    assert loop.due == [], "there is more"
    seen.end(loop)
    assert gc.get_threshold()[1] == large.NEVER
    ((seconds, restore),) = loop.due
    restore()
    assert (seconds, gc.get_threshold()) == (large.COLLECTS_AGAIN, usual)
    assert sys.getswitchinterval() == pytest.approx(turn, abs=1e-7)


@pytest.mark.parametrize(("waiting", "collected"), [(500, [1]), (3, [])])
def test_what_is_due_after_large_work_is_done_at_once(
    waiting: int, collected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While little is left of it: a list's 66,000 objects were looked at for 60 ms, since an earlier one had ended."""
    seen, did = large._Collector(), list[int]()
    monkeypatch.setattr(gc, "get_threshold", lambda: (20_000, 100, 20))
    monkeypatch.setattr(gc, "set_threshold", lambda *numbers: None)
    monkeypatch.setattr(gc, "get_count", lambda: (0, waiting, 0))
    monkeypatch.setattr(gc, "collect", did.append)
    loop: Any = type("Loop", (), {"call_later": lambda self, seconds, function: function()})()
    seen.begin()
    seen.end(loop)
    assert did == collected


async def test_the_collector_is_told_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of work that failed."""
    assert await offload(True, lambda: collector.running) == 1
    with pytest.raises(ZeroDivisionError):
        await offload(True, lambda: 1 // 0)
    assert collector.running == 0
    collector.restore()
    await asyncio.sleep(0)


async def test_what_failed_lets_go_too() -> None:
    """An error that knows its policy holds nothing of the work that it ended; a bug keeps its traceback."""
    Thing.freed = 0
    freed: list[int] = []

    class Last:
        def __del__(self) -> None:
            freed.append(threading.get_ident())

    def work(error: Exception) -> None:
        held = made(400)
        last = Last()
        try:
            raise KeyError(len(held), last)
        except KeyError:
            raise error from None

    refusal, bug = BadResponse("no"), ValueError("a bug")
    with pytest.raises(BadResponse) as failed:
        await offload(True, work, refusal)
    assert failed.value is refusal
    assert Thing.freed == 400
    assert freed != [threading.get_ident()], "in the thread"
    assert refusal.__context__ is None
    with pytest.raises(ValueError, match="a bug") as crashed:
        await offload(True, work, bug)
    assert any("work" in line for line in traceback.format_tb(crashed.value.__traceback__))
    with pytest.raises(BadResponse) as here:
        work(refusal)
    deferred_free.free_failure_later(refusal)
    assert here.value.__traceback__ is not None, "no work in a thread: nothing is done"


def test_long_bytes_and_texts_are_given_back_before_they_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they are held; never what somebody else holds, nor a byte of anything else."""
    real, given = deferred_free._madvise(), []
    assert real is not None, "Linux has it"

    def madvise(start: int, size: int, advice: int) -> int:
        given.append(range(start, start + size))
        return real(start, size, advice)

    monkeypatch.setattr(deferred_free, "_madvise", lambda: madvise)
    size = 2 * deferred_free._LONG
    ours, odd = b"x" * size, ["é" * size, "€" * size, bytearray(size), b"x" * 1000, "x" * 1000, size]
    things = [bytes(bytearray(size)), {"a": ["y" * size, ours], "b": odd}]
    places = {id(things[0]), id(things[1]["a"][0])}  # type: ignore[index]  # things of two kinds
    free_in_pieces(things)
    assert len(given) == 2
    for pages in given:
        assert any(place + 33 <= pages.start and pages.stop <= place + size for place in places)
        assert len(pages) > size - 3 * 4096
    assert ours == b"x" * size
    assert odd[:2] == ["é" * size, "€" * size]


def test_what_was_given_back_is_whole_but_for_its_pages() -> None:
    """Its header, its ends and its neighbours stay as they are: so it can be freed."""
    size = deferred_free._LONG + 12345
    for long in (b"x" * size, "x" * size):
        assert deferred_free._is_long(long)
        deferred_free._give_back(long)
        assert len(long) == size
        assert sys.getsizeof(long) == deferred_free._SIZES[type(long)] + size
        assert {long[0], long[-1]} <= {"x", ord("x")}
        assert set(long[3 * 4096 : -3 * 4096]) <= {"\0", 0}


def test_without_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another system frees it as it is."""
    monkeypatch.setattr(deferred_free, "_madvise", lambda: None)
    things = [bytes(2 * deferred_free._LONG)]
    free_in_pieces(things)
    assert things == []
