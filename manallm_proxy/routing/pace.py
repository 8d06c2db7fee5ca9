"""Estimates how fast one model of a local server answers, and how many bytes of a request make one token.

Both are learned from its answers, and serve only to order requests and to bound their wait. Nothing here waits. Times
are in seconds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import inf
from typing import Final

from attrs import field
from msgspec import Struct

from manallm_proxy.contract.records import define

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
PICTURE_LEAST: Final = 1
"""Tokens that a picture has at least: of the encoders that llama.cpp knows Youtu-VL's and Kimi's go down to 1 and 2,
most to 8 or 64 (its tools/mtmd/clip.cpp, ``set_limit_image_tokens``)."""
PICTURE_USUAL: Final = 256
"""Tokens of a picture until some were learned: as many as Gemma 3 takes. It only estimates how long it takes."""
PICTURE_MARGIN: Final = 4
"""A picture may have so many times fewer tokens than any recent one, where the encoder goes by its size in pixels,
which we do not know."""
ALIKE: Final = 1.25
VARIED: Final = 4.0
"""Where the largest pictures of late have so many times the bytes of the smallest, and hardly more tokens than any, a
picture always has the same."""
_WEIGHT: Final = 0.3
"""Weight of the latest answer in a moving average."""


class Pictures(Struct):
    """Those of one request: how many, and of how many bytes in all, as they are in its body."""

    number: int
    size: int


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
    _pictures: deque[tuple[float, float]] = field(factory=lambda: deque(maxlen=RECENT))
    """Tokens that a picture of the latest answers had at least, and its bytes."""
    _picture: float = PICTURE_USUAL
    """Tokens of a picture on average."""

    def learn(
        self, size: int, prompt: int, output: int, first: float | None, total: float, pictures: Pictures | None = None
    ) -> None:
        """Learns from one answer: bytes of its request without its `pictures`, tokens of prompt and output, seconds to
        the first byte and in all."""
        known = self.prompt_token
        if known is None or self._usual is None:  # else `seconds` knows better
            self.answer = self._seconds.short(total)
        if prompt <= 0:
            return
        if pictures is not None:
            self._learn_pictures(size, prompt, pictures)
        elif size >= SHORT:
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

    def _learn_pictures(self, size: int, prompt: int, pictures: Pictures) -> None:
        """What pictures take: the rest of a prompt whose words are estimated."""
        if self._usual is None:
            return
        words = size / self._usual
        surely, likely = (max(prompt - part * words, 0.0) / pictures.number for part in (MARGIN, 1.0))
        self._pictures.append((surely, pictures.size / pictures.number))
        self._picture = likely if len(self._pictures) == 1 else self._picture + _WEIGHT * (likely - self._picture)

    def seconds(self, size: int, pictures: Pictures | None = None) -> float:
        """Seconds that a request of `size` bytes, and `pictures`, is expected to take; 0 if nothing is known."""
        usual, for_prompt = self._usual, self.prompt_token
        if usual is None or for_prompt is None:
            return self.answer or 0.0
        tokens = size / usual
        if pictures is not None:
            tokens += pictures.number * self._picture
        return tokens * for_prompt + self.output * self.output_token

    def tokens(self, size: int) -> int | None:
        """Tokens that a prompt of `size` bytes has on average; None if too little is known."""
        return round(size / self._usual) if self._usual is not None else None

    def least_tokens(self, size: int, pictures: Pictures | None = None) -> int:
        """Tokens that a prompt of `size` bytes, and `pictures`, has at least."""
        if pictures is None:
            return int(size / self._most)
        return int(size / self._most + self._least_of(pictures))

    def _least_of(self, pictures: Pictures) -> float:
        """The model takes the same for each, or goes by their size in pixels, and so roughly by their bytes: unless the
        first is seen to be so, whichever is less."""
        number, least = pictures.number, pictures.number * PICTURE_LEAST
        if len(self._pictures) < LEARNED_MIN:
            return least
        tokens, sizes = [each for each, _ in self._pictures], [size for _, size in self._pictures]
        if max(tokens) <= ALIKE * min(tokens) and max(sizes) >= VARIED * min(sizes):
            return max(number * min(tokens) / MARGIN, least)
        by_size = pictures.size * min([each / size for each, size in self._pictures])
        return max(min(number * min(tokens), by_size) / PICTURE_MARGIN, least)


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
