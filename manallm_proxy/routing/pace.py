"""Estimates how fast one model of a local server answers, and how many bytes of a request make one token.

Both are learned from its answers, and serve only to order requests and to bound their wait. Nothing here waits. Times
are in seconds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import inf
from typing import Final

from attrs import define, field

RECENT: Final = 20
"""Latest answers from which the bytes per token are estimated."""
LENGTHS: Final = 50
"""Latest answers from which the length of the next one is estimated."""
QUANTILE: Final = 0.2
"""Of the latest answers' lengths, taken for the next one's. It is low since nobody knows how long an answer will be and
every wait is bounded: only a request that would surely wait too long moves on (``make simulate`` compares)."""
_PART: Final = round(1 / QUANTILE)
LEARNED_MIN: Final = 3
"""Answers that are needed before the estimate of bytes per token is used."""
MARGIN: Final = 1.5
"""A prompt may have so many times the bytes per token of any recent one: prose after code."""
LONGEST_TOKEN: Final = 32.0
"""Bytes per token that no prompt reaches on average: assumed until enough was learned."""
SHORT: Final = 500
"""Requests of fewer bytes teach nothing about bytes per token: the template around their text counts too much."""
_WEIGHT: Final = 0.3
"""Weight of the latest answer in a moving average."""


@define
class Pace:
    """The estimates for one model; None: not known."""

    answer: float | None = None
    """Seconds of a short answer (`QUANTILE`), learned until those of its tokens are known."""
    prompt_token: float | None = None
    """Seconds until the first byte, for each token of the prompt."""
    output_token: float = 0.0
    """Seconds from the first byte to the last, for each token of the answer; known if ``prompt_token`` is, ..."""
    output: float = 0.0
    """... and so are the tokens of a short answer (`QUANTILE`)."""
    _seconds: Recent = field(factory=lambda: Recent())
    _outputs: Recent = field(factory=lambda: Recent())
    _most: float = LONGEST_TOKEN
    """Bytes per token that no prompt is expected to exceed."""
    _usual: float | None = None
    """Bytes per token on average; None: too little is known."""
    _ratios: deque[float] = field(factory=lambda: deque(maxlen=RECENT))
    """Bytes per token of the latest answers, ..."""
    _sum: float = 0.0
    """... added up, ..."""
    _largest: float = 0.0
    """... and the largest of them."""

    def learn(self, size: int | None, prompt: int, output: int, first: float | None, total: float) -> None:
        """Learns from one answer: bytes of its request (None: they say nothing of its tokens), tokens of prompt and
        output, seconds to the first byte and in all."""
        known = self.prompt_token
        if known is None or self._usual is None:  # else `seconds` knows better
            self.answer = self._seconds.short(total)
        if prompt <= 0:
            return
        if size is not None and size >= SHORT:
            ratios, ratio, largest = self._ratios, size / prompt, self._largest
            gone = ratios[0] if len(ratios) == RECENT else inf
            if ratio == largest == gone or gone < largest > ratio:
                self._sum = added = self._sum + ratio - gone
                self._usual = added / RECENT
                ratios.append(ratio)
            else:
                self._weigh(ratio)
        if first is None or output <= 0:
            return
        self.output = self._outputs.short(output)
        for_prompt, for_output = first / prompt, (total - first) / output
        if known is None:
            self.prompt_token, self.output_token = for_prompt, for_output
            return
        self.prompt_token = known + _WEIGHT * (for_prompt - known)
        self.output_token += _WEIGHT * (for_output - self.output_token)

    def _weigh(self, ratio: float) -> None:
        """One more of the latest ratios, after which the largest may be another. Adds all up anew, so that no error of
        rounding lasts."""
        ratios = self._ratios
        ratios.append(ratio)
        self._largest, self._sum = max(ratios), sum(ratios)
        if len(ratios) >= LEARNED_MIN:
            self._most, self._usual = MARGIN * self._largest, self._sum / len(ratios)

    def seconds(self, size: int) -> float:
        """Seconds that a request of `size` bytes is expected to take; 0 if nothing is known."""
        usual, for_prompt = self._usual, self.prompt_token
        if usual is None or for_prompt is None:
            return self.answer or 0.0
        return size / usual * for_prompt + self.output * self.output_token

    def tokens(self, size: int) -> int | None:
        """Tokens that a prompt of `size` bytes has on average; None if too little is known."""
        return round(size / self._usual) if self._usual is not None else None

    def least_tokens(self, size: int) -> int:
        """Tokens that a prompt of `size` bytes has at least."""
        return int(size / self._most)


@define
class Recent:
    """The latest `LENGTHS` values, also in order of size."""

    _latest: deque[float] = field(factory=lambda: deque(maxlen=LENGTHS))
    _sorted: list[float] = field(factory=list)

    def short(self, value: float) -> float:
        """Adds `value`. Returns the one at `QUANTILE`."""
        latest, ordered = self._latest, self._sorted
        if len(ordered) == LENGTHS:
            del ordered[bisect_left(ordered, latest[0])]
        latest.append(value)  # and the oldest is gone
        insort(ordered, value)
        return ordered[len(ordered) // _PART]
