"""Estimates how fast one model of a local server answers, and how many bytes of a request make one token.

Both are learned from its answers, and serve only to order requests and to bound their wait. Nothing here waits. Times
are in seconds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Final

from attrs import define, field

RECENT: Final = 20
"""Latest answers from which the bytes per token are estimated."""
LENGTHS: Final = 50
"""Latest answers from which the length of the next one is estimated."""
QUANTILE: Final = 0.2
"""Of the latest answers' lengths, taken for the next one's. It is low since nobody knows how long an answer will be and
every wait is bounded: only a request that would surely wait too long moves on (``make simulate`` compares)."""
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
    """Seconds of a short answer (`QUANTILE`)."""
    prompt_token: float | None = None
    """Seconds until the first byte, for each token of the prompt."""
    output_token: float | None = None
    """Seconds from the first byte to the last, for each token of the answer."""
    output: float | None = None
    """Tokens of a short answer (`QUANTILE`)."""
    _seconds: Recent = field(factory=lambda: Recent())
    _outputs: Recent = field(factory=lambda: Recent())
    _most: float = LONGEST_TOKEN
    """Bytes per token that no prompt is expected to exceed."""
    _bytes_per_token: deque[float] = field(factory=lambda: deque(maxlen=RECENT))

    def learn(self, size: int | None, prompt: int, output: int, first: float | None, total: float) -> None:
        """Learns from one answer: bytes of its request (None: they say nothing of its tokens), tokens of prompt and
        output, seconds to the first byte and in all."""
        self.answer = self._seconds.short(total)
        if prompt > 0 and size is not None and size >= SHORT:
            self._bytes_per_token.append(size / prompt)
            if len(self._bytes_per_token) >= LEARNED_MIN:
                self._most = MARGIN * max(self._bytes_per_token)
        if first is None or prompt <= 0 or output <= 0:
            return
        self.output = self._outputs.short(output)
        self.prompt_token = _average(self.prompt_token, first / prompt)
        self.output_token = _average(self.output_token, max(total - first, 0.0) / output)

    def seconds(self, size: int) -> float:
        """Seconds that a request of `size` bytes is expected to take; 0 if nothing is known."""
        tokens = self.tokens(size)
        if tokens is None or self.prompt_token is None or self.output_token is None or self.output is None:
            return self.answer or 0.0
        return tokens * self.prompt_token + self.output * self.output_token

    def tokens(self, size: int) -> int | None:
        """Tokens that a prompt of `size` bytes has on average; None if too little is known."""
        if len(self._bytes_per_token) < LEARNED_MIN:
            return None
        return round(size * len(self._bytes_per_token) / sum(self._bytes_per_token))

    def least_tokens(self, size: int) -> int:
        """Tokens that a prompt of `size` bytes has at least."""
        return int(size / self._most)


@define
class Recent:
    """The latest `LENGTHS` values, also in order of size."""

    _latest: deque[float] = field(factory=deque)
    _sorted: list[float] = field(factory=list)

    def short(self, value: float) -> float:
        """Adds `value`. Returns the one at `QUANTILE`."""
        if len(self._latest) == LENGTHS:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(value)
        insort(self._sorted, value)
        return self._sorted[int(QUANTILE * len(self._sorted))]


def _average(known: float | None, latest: float) -> float:
    return latest if known is None else known + _WEIGHT * (latest - known)
