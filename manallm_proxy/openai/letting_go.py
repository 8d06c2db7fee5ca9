"""Frees what is large piece by piece.

When the last reference to a list of a hundred thousand objects goes, all of them are freed at once, and nothing else
runs for tens of milliseconds, in whichever thread that is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from gc import get_referents, is_tracked
from sys import getrefcount
from traceback import walk_tb
from typing import Any, Final, ParamSpec, TypeVar

from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.frames import forget_frames

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PIECE: Final = 500
"""Objects that are freed at once."""


def _popped(things: list[Any]) -> tuple[Any, int]:
    """The last of `things`, and how many references there are to it, as `getrefcount` counts them here."""
    thing = things.pop()
    return thing, getrefcount(thing)


_OURS: Final = _popped([object()])[1]
"""For what nobody else holds. Python 3.14 counts one less than those before it."""


def let_go(things: list[Any]) -> None:
    """Frees `things`, which is empty afterwards, and what only they hold. What others hold, too, is left to them."""
    while things:
        thing, references = _popped(things)
        if references > _OURS or not is_tracked(thing):
            continue
        held = get_referents(thing)
        del thing  # so that what it held is held by the list alone
        things.extend(filter(is_tracked, held))
        while held:
            del held[-_PIECE:]


class _Later(threading.local):
    """What `keep_for_later` was given in this thread; None: it is not in `letting_go`."""

    things: list[Any] | None = None


_later: Final = _Later()


def keep_for_later(*things: Any) -> None:
    """Holds `things` until the work of `letting_go` that this is part of is done, to free them piece by piece then.

    Elsewhere it does nothing.
    """
    if _later.things is not None:
        _later.things += things


def keep_of_failure(error: ProxyError) -> None:
    """What the frames that `error` came through hold is kept for later, and `error` forgets them."""
    if _later.things is None:
        return
    links: list[BaseException | None] = [error, error.__context__, error.__cause__]
    for link in links:
        if link is not None:
            for frame, _ in walk_tb(link.__traceback__):
                keep_for_later(*frame.f_locals.values())
    forget_frames(error)


def letting_go(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """The result of `function`. What it passed to `keep_for_later` is freed afterwards."""
    before, _later.things = _later.things, []
    try:
        return function(*args, **kwargs)
    except ProxyError as error:
        keep_of_failure(error)
        raise
    finally:
        del args, kwargs
        things, _later.things = _later.things, before
        let_go(things)
