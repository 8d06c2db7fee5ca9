"""The average number of tokens in each target's answers: an estimate for requests that set no maximum."""

from __future__ import annotations

from typing import Final

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target

_WEIGHT: Final = 1 / 8
"""Of one more answer."""
_MOST: Final = 1000
"""Targets that are known; a provider may have more models than anybody asks for."""


@define(eq=False)
class AnswerLengths:
    """Of one process. Many requests at once have about the average; one of them may have much more."""

    _averages: dict[Target, float] = field(factory=dict)

    def learn(self, target: Target, tokens: int) -> None:
        """One complete answer."""
        average = self._averages.pop(target, float(tokens))
        self._averages[target] = average + _WEIGHT * (tokens - average)
        if len(self._averages) > _MOST:
            del self._averages[next(iter(self._averages))]

    def expected(self, target: Target) -> int:
        """0 where nothing is known yet."""
        return round(self._averages.get(target, 0.0))
