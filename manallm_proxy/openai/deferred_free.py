"""Frees what is large piece by piece.

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

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PIECE: Final = 500
"""Objects that are freed at once."""
_LONG: Final = 2**20
"""Bytes or characters whose memory is given back before they are freed."""
_SIZES: Final[dict[type, int]] = {bytes: getsizeof(b""), str: getsizeof("")}
"""Bytes of empty ones. A text that takes a byte more for each character is ASCII, and in one piece (PEP 393)."""


def _popped(things: list[Any]) -> tuple[Any, int]:
    """The last of `things`, and how many references there are to it, as `getrefcount` counts them here."""
    thing = things.pop()
    return thing, getrefcount(thing)


_OURS: Final = _popped([object()])[1]
"""For what nobody else holds. Python 3.14 counts one less than those before it."""


def free_in_pieces(things: list[Any]) -> None:
    """Frees `things`, which is empty afterwards, and what only they hold. What others hold, too, is left to them."""
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
    """What `free_later` was given in this thread; None: it is not in `run_then_free`."""

    things: list[Any] | None = None


_later: Final = _Later()


def free_later(*things: Any) -> None:
    """Holds `things` until the work of `run_then_free` that this is part of is done, to free them piece by piece then.

    Elsewhere it does nothing.
    """
    if _later.things is not None:
        _later.things += things


def free_failure_later(error: ProxyError) -> None:
    """What the frames that `error` came through hold is kept for later, and `error` forgets them."""
    if _later.things is None:
        return
    links: list[BaseException | None] = [error, error.__context__, error.__cause__]
    for link in links:
        if link is not None:
            for frame, _ in walk_tb(link.__traceback__):
                free_later(*frame.f_locals.values())
    clear_tracebacks(error)


def run_then_free(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """The result of `function`. What it passed to `free_later` is freed afterwards."""
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
