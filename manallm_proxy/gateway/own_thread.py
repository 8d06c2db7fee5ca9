"""Long work of an operator's, such as reading a configuration: in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

from manallm_proxy.openai.large import collector

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Runs `work` in a thread of its own; returns or raises what it does.

    Not ``asyncio.to_thread``: the process would wait for that thread at exit, and a read may hang for ever.
    """
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="own", daemon=True).start()
    return await asyncio.wrap_future(done)


async def made_in_thread(make: Callable[[], T]) -> T:
    """As `in_thread`, where `make` makes many objects, all of which stay: meanwhile the cycle collector
    looks at few new ones at a time."""
    collector.begin()
    try:
        return await in_thread(make)
    finally:
        collector.end(asyncio.get_running_loop())
