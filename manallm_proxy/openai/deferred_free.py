"""Frees large object graphs in small pieces.

When the last reference to a list of a hundred thousand objects goes, all of them are freed at once, and nothing else
runs for tens of milliseconds, in whichever thread that is. So it is with long bytes and texts: a megabyte takes the
kernel 0.07 ms, and Python waits for it.
"""

from __future__ import annotations

import mmap
import sys
import threading
from collections.abc import Callable
from functools import cache
from gc import get_referents, is_tracked
from sys import getrefcount, getsizeof
from traceback import walk_tb
from typing import Any, Final, ParamSpec, TypeVar

from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.tracebacks import clear_tracebacks
from manallm_proxy.openai.allocator import APART

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PIECE: Final = 500
"""Objects that are freed at once."""
_LONG: Final = APART
"""Bytes or characters whose memory is given back before they are freed."""
_SIZES: Final[dict[type, int]] = {bytes: getsizeof(b""), str: getsizeof("")}
"""Bytes of empty ones. A text that takes a byte more for each character is ASCII, and in one piece (PEP 393)."""


def _popped(things: list[Any]) -> tuple[Any, int]:
    """Removes the last of `things`; returns it with its reference count, as `getrefcount` counts it here."""
    thing = things.pop()
    return thing, getrefcount(thing)


_OURS: Final = _popped([object()])[1]
"""The count for an object that nothing else refers to. Python 3.14 counts one less than earlier versions."""


def free_in_pieces(things: list[Any]) -> None:
    """Empties `things` and frees what only they refer to. Objects with other references are left alone."""
    while things:
        thing, references = _popped(things)
        if references > _OURS:
            continue
        if not is_tracked(thing):
            if _is_long(thing):
                _give_back(thing)
            continue
        held = get_referents(thing)
        del thing  # so that what it held is held by the list alone
        while held:
            things += [each for each in held[-_PIECE:] if is_tracked(each) or _is_long(each)]
            del held[-_PIECE:]


def _is_long(thing: Any) -> bool:
    """Whether `thing` is bytes or a text of megabytes that stand right behind its header, a byte each."""
    kind = type(thing)
    return kind in _SIZES and len(thing) > _LONG and getsizeof(thing) == _SIZES[kind] + len(thing)


def _give_back(long: bytes | str) -> None:
    """Returns the memory of `long`, which nobody else may hold, to the system; others run meanwhile.

    Only whole pages between its header and its end: to free it is right afterwards, and quick.
    """
    madvise = _madvise()
    if madvise is not None:
        size = mmap.PAGESIZE
        start = (id(long) + _SIZES[str] + size) // size * size
        madvise(start, (id(long) + len(long)) // size * size - start, mmap.MADV_DONTNEED)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """madvise(2), called without Python's lock; None where there is none, or an id is no address."""
    import ctypes  # which takes long, and is not needed at the start

    if sys.implementation.name != "cpython" or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    try:
        call = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return call


class _Later(threading.local):
    """The arguments of `free_later` in this thread; None: outside of `run_then_free`."""

    things: list[Any] | None = None


_later: Final = _Later()


def free_later(*things: Any) -> None:
    """Holds `things` until the enclosing `run_then_free` has finished its work, and then frees them in pieces.

    Does nothing outside of `run_then_free`.
    """
    if _later.things is not None:
        _later.things += things


def free_failure_later(error: ProxyError) -> None:
    """Defers freeing the locals of all frames in the traceback of `error`, and clears the traceback."""
    if _later.things is None:
        return
    links: list[BaseException | None] = [error, error.__context__, error.__cause__]
    for link in links:
        if link is not None:
            for frame, _ in walk_tb(link.__traceback__):
                free_later(*frame.f_locals.values())
    clear_tracebacks(error)


def run_then_free(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """The result of `function`. Frees in pieces what it passed to `free_later`."""
    before, _later.things = _later.things, []
    try:
        return function(*args, **kwargs)
    except ProxyError as error:
        free_failure_later(error)
        raise
    finally:
        del args, kwargs
        things, _later.things = _later.things, before
        free_in_pieces(things)
