"""A key's requests per minute, counted for all workers and instances by one script in Redis, and else estimated."""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections.abc import Iterator
from typing import Any, Final

from attrs import define, field

from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.ratelimit import SPAN
from manallm_proxy.state.entries import PREFIX
from manallm_proxy.state.link import Away, Link, Refused

_SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local span, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - span)
local passed = redis.call('ZCARD', KEYS[1])
if passed < limit then
    redis.call('ZADD', KEYS[1], now, ARGV[3])
    redis.call('PEXPIRE', KEYS[1], math.ceil(span / 1000))
    return {1, passed + 1, 0}
end
local first = redis.call('ZRANGE', KEYS[1], passed - limit, passed - limit, 'WITHSCORES')
return {0, passed, math.ceil(first[2] + span - now)}
"""
"""One of a sliding window, by the server's clock: whether it passes, how many have, microseconds until one may."""


@define(eq=False)
class SharedLimits:
    """See the module."""

    link: Link
    _sender: str = field(factory=lambda: secrets.token_hex(8))
    _numbers: Iterator[int] = field(factory=itertools.count)

    async def ask(self, caller: Caller, now: float) -> None:
        """As `Caller.ask`, for all who share the server. Raises KeyLimited."""
        window = caller.window
        if window is None:
            caller.ask(now)
            return
        caller.refuse_many()
        name = f"{PREFIX}limit:{hashlib.sha256(caller.key.name.encode()).hexdigest()[:32]}"
        member = f"{self._sender}:{next(self._numbers)}"

        async def take(client: Any) -> list[int]:
            found: list[int] = await client.eval(_SCRIPT, 1, name, int(SPAN * 1e6), window.limit, member)
            return found

        try:
            passes, passed, wait = await self.link.use(take)
        except Away:
            caller.ask(now)
            return
        except Refused as refusal:
            if str(refusal) == "WRONGTYPE":
                await self._forget(name)
            else:
                self.link.told(str(refusal))
            caller.ask(now)
            return
        if passes:
            window.note(now)
        window.learn(passed, now)
        if not passes:
            raise caller.limited(window, wait / 1e6)

    async def _forget(self, name: str) -> None:
        """What stands there is not ours."""
        try:
            await self.link.use(lambda client: client.unlink(name))
        except (Away, Refused):
            return
