"""The time that a chain leaves for one attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from manallm_proxy.contract.provider_errors import ChainTimeout
from manallm_proxy.contract.targets import Entry

T = TypeVar("T")


async def asked_within(seconds: float | None, ask: Callable[[Entry], Awaitable[T]], entry: Entry) -> T:
    """The result of `ask` for `entry`. Raises ChainTimeout after `seconds`, if there is a limit."""
    return await (ask(entry) if seconds is None else within(seconds, ask(entry)))


async def within(seconds: float, asking: Awaitable[T]) -> T:
    """The result of `asking`. Raises ChainTimeout after `seconds`."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await asking
    except TimeoutError:
        if not limit.expired():
            raise
        raise ChainTimeout("the chain's time is over", detail=f"after {seconds:.3g} s") from None
