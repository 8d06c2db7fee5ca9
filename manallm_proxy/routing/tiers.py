"""Orders the targets of a tier: entries of a chain that share its load as one step.

1. *least_busy*: by requests in flight at the provider, fewest first; among equals, the least recently first one.
2. *weighted*: nginx's smooth weighted round robin.
3. *fastest*: by the recent time until an answer began; streams and whole answers are measured separately. A target that
   was not measured for `STALE` seconds is first once, so that a change is noticed.
4. *sticky*: weighted rendezvous hashing by conversation: if a target is gone, only its own conversations move.

The walk tries them in that order under all rules of health: the order only decides which target is tried first.

Nothing here waits, and the time is an argument: any monotonic number of seconds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Final

from attrs import evolve, field

from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.targets import Chain, Entry, Target, Tier

STALE: Final = 60.0
_WEIGHT: Final = 0.3
"""Weight of the latest answer in the moving average."""


@frozen
class Asked:
    """What the order depends on, besides the tier. ``busy``: requests in flight at a target's provider.

    ``conversation``: bytes that are the same for all requests of one conversation.
    """

    busy: Callable[[Target], int]
    conversation: Callable[[], bytes]
    streams: bool = False


@define(eq=False)
class _Member:
    """One target of one tier."""

    turn: float = 0.0
    """Current weight of smooth weighted round robin."""
    first_at: int = 0
    """Number of the request for which it was last the first of its tier."""


@define(eq=False)
class _Pace:
    seconds: float | None = None
    """Average seconds until its answers began; None: unknown."""
    asked_at: float = -math.inf


@define(eq=False)
class Tiers:
    """State of all tiers of one configuration."""

    _members: dict[tuple[str | None, int, Target], _Member] = field(factory=dict)
    _paces: dict[tuple[Target, bool], _Pace] = field(factory=dict)
    _requests: int = 0

    def arranged(self, chain: Chain, asked: Asked, now: float) -> Chain:
        """`chain` with the entries of each tier in the order in which this request tries them."""
        self._requests += 1
        entries: list[Entry] = []
        for tier, group in groupby(chain, key=lambda entry: entry.tier):
            members = list(group)
            entries += members if tier is None else self._ordered(chain.alias, tier, members, asked, now)
        return evolve(chain, entries=tuple(entries))

    def began(self, target: Target, streams: bool, seconds: float) -> None:
        """`target` has begun an answer after `seconds`."""
        pace = self._paces.setdefault((target, streams), _Pace())
        pace.seconds = seconds if pace.seconds is None else (1 - _WEIGHT) * pace.seconds + _WEIGHT * seconds

    def _ordered(
        self, alias: str | None, tier: Tier, members: list[Entry], asked: Asked, now: float
    ) -> Iterable[Entry]:
        match tier.strategy:
            case "least_busy":
                known = [self._members.setdefault((alias, tier.place, e.target), _Member()) for e in members]
                keys = [(asked.busy(e.target), each.first_at) for e, each in zip(members, known, strict=True)]
                order = sorted(range(len(members)), key=keys.__getitem__)
                known[order[0]].first_at = self._requests
                return [members[n] for n in order]
            case "weighted":
                return self._in_turns(alias, tier, members)
            case "fastest":
                return self._by_pace(members, asked.streams, now)
            case "sticky":
                seed = asked.conversation()
                return sorted(members, key=lambda entry: _score(seed, entry), reverse=True)

    # 2

    def _in_turns(self, alias: str | None, tier: Tier, members: list[Entry]) -> list[Entry]:
        known = [self._members.setdefault((alias, tier.place, e.target), _Member()) for e in members]
        for entry, each in zip(members, known, strict=True):
            each.turn += entry.weight
        order = sorted(range(len(members)), key=lambda n: -known[n].turn)
        known[order[0]].turn -= sum(entry.weight for entry in members)
        return [members[n] for n in order]

    # 3

    def _by_pace(self, members: list[Entry], streams: bool, now: float) -> list[Entry]:
        paces = [self._paces.setdefault((entry.target, streams), _Pace()) for entry in members]

        def key(n: int) -> tuple[bool, float, float]:
            stale = now - paces[n].asked_at >= STALE
            seconds = paces[n].seconds
            return not stale, math.inf if seconds is None else seconds, paces[n].asked_at

        order = sorted(range(len(members)), key=key)
        paces[order[0]].asked_at = now
        return [members[n] for n in order]


# 4


def _score(seed: bytes, entry: Entry) -> float:
    """Rendezvous score, highest first: -weight / log(uniform), so that each is first for its share of all seeds."""
    digest = hashlib.blake2b(str(entry.target).encode(), key=hashlib.blake2b(seed, digest_size=32).digest()).digest()
    uniform = (int.from_bytes(digest[:8], "big") + 1) / (2**64 + 2)
    return -entry.weight / math.log(uniform)
