"""How fast one model of a local server is, and how many bytes of a request one of its tokens takes.

Both are learned from the answers that it gave, and both are estimates: they order requests and bound their wait, and
nothing else. Nothing here waits. Times are in seconds.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import define, field

RECENT: Final = 20
"""Answers from which the bytes of a token are told."""
LENGTHS: Final = 50
"""Answers from which the length of the next is told."""
SHORTER: Final = 0.2
"""Part of the answers that are shorter than the one that is expected. Nobody knows how long the next will be, and a
wait is bounded in any case: so only who would surely wait too long is sent away (``make simulate`` compares)."""
LEARNT: Final = 3
"""Answers from which on that is gone by."""
MARGIN: Final = 1.5
"""A prompt may have so many times more bytes to a token than any that was seen lately: code beside prose."""
LONGEST_TOKEN: Final = 32.0
"""Bytes of a token that no prompt reaches on average: gone by as long as nothing was learned."""
SHORT: Final = 500
"""Bytes of a request below which the template around its text would falsify what is learned."""
_WEIGHT: Final = 0.3
"""Of the latest answer in an average."""


@define
class Pace:
    """What one model's answers take; None: not known."""

    answer: float | None = None
    """Seconds of a short one."""
    prompt_token: float | None = None
    """Seconds until the first byte, for each token of the prompt."""
    output_token: float | None = None
    """Seconds from the first byte to the last, for each token of the answer."""
    output: float | None = None
    """Tokens of a short one."""
    _seconds: deque[float] = field(factory=lambda: deque(maxlen=LENGTHS))
    _outputs: deque[float] = field(factory=lambda: deque(maxlen=LENGTHS))
    _bytes_per_token: deque[float] = field(factory=lambda: deque(maxlen=RECENT))

    def learn(self, size: int | None, prompt: int, output: int, first: float | None, total: float) -> None:
        """One answer: bytes of its request (None: they say nothing), tokens, seconds to the first byte and in all."""
        self.answer = _short(self._seconds, total)
        if prompt > 0 and size is not None and size >= SHORT:
            self._bytes_per_token.append(size / prompt)
        if first is None or prompt <= 0 or output <= 0:
            return
        self.output = _short(self._outputs, output)
        self.prompt_token = _average(self.prompt_token, first / prompt)
        self.output_token = _average(self.output_token, max(total - first, 0.0) / output)

    def seconds(self, size: int) -> float:
        """What a request of `size` bytes is expected to take; 0 where nothing is known."""
        tokens = self.tokens(size)
        if tokens is None or self.prompt_token is None or self.output_token is None or self.output is None:
            return self.answer or 0.0
        return tokens * self.prompt_token + self.output * self.output_token

    def tokens(self, size: int) -> int | None:
        """Of a prompt of `size` bytes, on average; None where nothing is known."""
        if len(self._bytes_per_token) < LEARNT:
            return None
        return round(size * len(self._bytes_per_token) / sum(self._bytes_per_token))

    def least_tokens(self, size: int) -> int:
        """Of a prompt of `size` bytes: it surely has so many."""
        known = len(self._bytes_per_token) >= LEARNT
        most = MARGIN * max(self._bytes_per_token) if known else LONGEST_TOKEN
        return int(size / most)


def _short(known: deque[float], latest: float) -> float:
    """The length than which `SHORTER` of those that are known, and the latest, are shorter."""
    known.append(latest)
    return sorted(known)[int(SHORTER * len(known))]


def _average(known: float | None, latest: float) -> float:
    return latest if known is None else known + _WEIGHT * (latest - known)
