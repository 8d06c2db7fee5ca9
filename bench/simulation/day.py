"""A day's requests: Poisson arrivals whose rate follows the hour, with bursts, as agents and people make them."""

from __future__ import annotations

import math
import random
from functools import cache
from typing import Any, Final

from attrs import frozen

PROMPT_RATE: Final = 2000.0
OUTPUT_RATE: Final = 40.0
"""Tokens per second of the simulated box: a model of 8 billion parameters on a consumer's GPU."""
PROMPT: Final = (800.0, 0.9)
OUTPUT: Final = (250.0, 0.6)
"""Tokens: median, and the spread of their logarithm."""
BURST: Final = 0.03
"""Part of the arrivals that others follow."""
FOLLOWERS: Final = (3, 12)
BURST_SECONDS: Final = 10.0


@frozen
class Asked:
    """One request: when, and how much work it is. Nobody but the omniscient scheduler knows ``output`` beforehand."""

    at: float
    prompt: int
    output: int

    @property
    def first(self) -> float:
        """Seconds until its first byte, once the box works on it."""
        return self.prompt / PROMPT_RATE

    @property
    def seconds(self) -> float:
        return self.first + self.output / OUTPUT_RATE


def a_day(load: float, hours: float, seed: int) -> list[Asked]:
    """In order of arrival; on average `load` times what the box can do. The night is quiet."""
    mean, thrown = _mean(seed)
    dice = random.Random()
    dice.setstate(thrown)
    followers = BURST * sum(FOLLOWERS) / 2
    rate, end = load / mean / (1 + followers), hours * 3600
    made: list[Asked] = []
    now = 0.0
    while (now := now + dice.expovariate(2 * rate)) < end:
        if dice.random() >= _share(now, end) / 2:
            continue
        made.append(_asked(now, dice))
        if dice.random() < BURST:
            made += [_asked(now + dice.uniform(0, BURST_SECONDS), dice) for _ in range(dice.randint(*FOLLOWERS))]
    return sorted(made, key=lambda asked: asked.at)


@cache
def _mean(seed: int) -> tuple[float, tuple[Any, ...]]:
    """Seconds of a request, and the dice after that was found out."""
    dice = random.Random(seed)
    return sum(_asked(0.0, dice).seconds for _ in range(20_000)) / 20_000, dice.getstate()


def _share(now: float, end: float) -> float:
    """The rate at a time of the day, over its mean."""
    return 1 - 0.95 * math.cos(2 * math.pi * now / end)


def _asked(at: float, dice: random.Random) -> Asked:
    prompt, output = (max(1, round(median * math.exp(dice.gauss(0, spread)))) for median, spread in (PROMPT, OUTPUT))
    return Asked(at, prompt, output)
