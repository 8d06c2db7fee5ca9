"""The average number of tokens in each target's answers: an estimate for requests that set no maximum."""

from __future__ import annotations

from typing import Final

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target

_WEIGHT: Final = 1 / 8
"""Weight of the latest answer in the moving average."""
_MOST: Final = 1000
"""Max targets remembered; clients choose their names."""


@define(eq=False)
class AnswerLengths:
    """Averages of one process. They suit sums over many requests; a single answer may be much longer."""

    _averages: dict[Target, float] = field(factory=dict)

    def learn(self, target: Target, tokens: int) -> None:
        """Learns from one complete answer."""
        average = self._averages.pop(target, float(tokens))
        self._averages[target] = average + _WEIGHT * (tokens - average)
        if len(self._averages) > _MOST:
            del self._averages[next(iter(self._averages))]

    def expected(self, target: Target) -> int:
        """Tokens that an answer of `target` has on average; 0: unknown."""
        return round(self._averages.get(target, 0.0))
