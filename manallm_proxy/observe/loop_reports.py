"""Turns what asyncio passes to the loop's exception handler into an event, without the values in its context."""

from __future__ import annotations

from asyncio import Task
from collections.abc import Mapping
from typing import Final

from manallm_proxy.contract.events import Crashed, LoopReported

MESSAGES: Final = frozenset(
    {
        # CPython 3.11 to 3.14: Lib/asyncio/tasks.py and streams.py
        "Task was destroyed but it is pending!",
        "An open stream was garbage collected prior to establishing network connection; "
        'call "stream.close()" explicitly.',
        # aiohttp 3.14: client.py, client_reqrep.py, connector.py
        "Unclosed client session",
        "Unclosed connection",
        "Unclosed connector",
        "Unclosed response",
    }
)
"""Texts that are constants of a library. Others may be formatted with values: asyncio puts a callback's arguments
into "Exception in callback ..." (CPython, Lib/asyncio/events.py: Handle._run)."""


def loop_report(context: Mapping[str, object]) -> Crashed | LoopReported:
    """The event for one call of the loop's exception handler; see asyncio's ``loop.call_exception_handler``."""
    error = context.get("exception")
    if isinstance(error, BaseException):
        return Crashed("background", error)
    message = context.get("message")
    sources = tuple(f"{key}: {_kind(value)}" for key, value in context.items() if key not in ("message", "exception"))
    return LoopReported(message if isinstance(message, str) and message in MESSAGES else None, sources)


def _kind(value: object) -> str:
    """The type of `value`; for a task also the name of its coroutine function, which helps to find the bug."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    coroutine = value.get_coro() if isinstance(value, Task) else None
    return f"{kind} of {getattr(coroutine, '__qualname__', 'unknown')}" if coroutine is not None else kind
