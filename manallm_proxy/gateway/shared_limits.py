"""Rate limits of keys, counted for all workers and instances by scripts in Redis, or else estimated."""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections.abc import Iterator

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.ratelimit import SPAN, TokenReservation
from manallm_proxy.gateway.shared_spend import SharedSpend
from manallm_proxy.state.link import Link, Refused, ServerUnavailable
from manallm_proxy.state.names import PREFIX
from manallm_proxy.state.scripts import LATE, REQUESTS, TOKENS, name_of


@define(eq=False)
class SharedLimits:
    """Limits of all keys. Outlives reloads."""

    spend: SharedSpend
    _sender: str = field(factory=lambda: secrets.token_hex(8))
    _numbers: Iterator[int] = field(factory=itertools.count)

    @property
    def link(self) -> Link | None:
        """The link to the server that counts; None if each process counts for itself."""
        return self.spend.link()

    async def ask(self, caller: Caller, now: float) -> None:
        """As `Caller.ask`, for all processes that share the server. Raises KeyLimited."""
        window, link = caller.window, self.link
        if window is None or link is None:
            caller.ask(now)
            return
        caller.refuse_many()
        name = f"{PREFIX}{{spend}}:limit:{hashlib.sha256(caller.key.name.encode()).hexdigest()[:32]}"
        member = f"{self._sender}:{next(self._numbers)}"
        try:
            found = await link.use(lambda client: REQUESTS.run(client, [name], int(SPAN * 1e6), window.limit, member))
            passes, passed, wait = found[:3]
        except (ServerUnavailable, Refused) as error:
            _tell(link, error)
            caller.ask(now)
            self.spend.settlements.next.add_request(name, member, now)
            self.spend.settlements.send()
            return
        if passes:
            window.note(now)
        window.learn(passed, now)
        if not passes:
            raise caller.limited(window, wait / 1e6)

    async def take(self, caller: Caller, tokens: int, likely: int, now: float) -> TokenReservation | None:
        """As `Caller.reserve`, for all processes that share the server. Raises KeyLimited."""
        window, link, settlements = caller.tokens, self.link, self.spend.settlements
        if window is None or link is None:
            return caller.reserve(tokens, likely, now)
        name, sure, clock = name_of("tokens", caller.key.name), max(tokens, 1), self.spend.server_clock
        id_, until, was_well = settlements.new_id(), clock.until(now), link.is_well
        names = [name, settlements.sender]
        try:
            found = await link.use(lambda client: TOKENS.run(client, names, window.limit, sure, likely, until, id_))
            passes, passed, number, taken, time = found[:5]
            clock.learn(time, self.spend.clock())
        except (ServerUnavailable, Refused) as error:
            _tell(link, error)
            if was_well:
                settlements.undo([name], id_)
            return caller.reserve(tokens, likely, now)
        except BaseException:  # the client left
            settlements.undo([name], id_)
            raise
        if passes == LATE:
            return caller.reserve(tokens, likely, now)
        if passes:
            note = window.note(taken, now, number, id_)
            window.learn(passed, now)
            return note
        window.learn(passed, now)
        raise caller.too_many(tokens, window, number / 1e6 if sure <= window.limit else None)

    def settle(self, caller: Caller, taken: TokenReservation, tokens: int, now: float) -> None:
        """Replaces the reservation by the actual number of `tokens`. Does not wait for the server."""
        took, settlements = taken.tokens, self.spend.settlements
        caller.settle(taken, tokens, now)
        if self.link is None:
            return
        name = name_of("tokens", caller.key.name)
        more = tokens if taken.tick is None else tokens - took  # the server does not know of it
        if more:
            settlements.next.add_tokens(name, taken.tick or 0, more, now)
        if taken.id:
            settlements.next.done.append(taken.id)
        settlements.send()


def _tell(link: Link, error: ServerUnavailable | Refused) -> None:
    if isinstance(error, Refused):
        link.report_refusal(str(error))
