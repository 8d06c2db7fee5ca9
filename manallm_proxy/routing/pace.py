"""Estimates how fast one model of a local server answers, and how many bytes of a request make one token.

Both are learned from its answers, and are used only to order requests and to bound their wait. Nothing here waits. All
times are in seconds.
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
"""Number of latest answers used to estimate the bytes per token."""
LENGTHS: Final = 50
"""Number of latest answers used to estimate the length of the next one."""
QUANTILE: Final = 0.2
"""The quantile of recent lengths that predicts the next one. It is low on purpose: answer lengths are unpredictable and
every wait is bounded, so only a request that would surely wait too long moves on (``make simulate`` compares)."""
_PART: Final = round(1 / QUANTILE)
LEARNED_MIN: Final = 3
"""Min answers before the estimate of bytes per token is used."""
MARGIN: Final = 1.5
"""A prompt may have this many times the bytes per token of any recent one: prose after code."""
LONGEST_TOKEN: Final = 32.0
"""Upper bound of a prompt's average bytes per token, used until enough is learned."""
SHORT: Final = 500
"""Requests of fewer bytes are ignored for bytes per token: the template around their text weighs too much."""
PICTURE_LEAST: Final = 1
"""Min tokens of an image. Of llama.cpp's encoders, Youtu-VL's and Kimi's go down to 1 and 2, most to 8 or 64
(llama.cpp tools/mtmd/clip.cpp, ``set_limit_image_tokens``)."""
PICTURE_USUAL: Final = 256
"""Tokens of an image until they are learned: Gemma 3's number. Used for the expected time only."""
PICTURE_MARGIN: Final = 4
"""An image may have this many times fewer tokens than any recent one, if the encoder depends on its size in pixels,
which we do not know."""
ALIKE: Final = 1.25
VARIED: Final = 4.0
"""If the largest recent images have this many times the bytes of the smallest, but hardly more tokens, the number of
tokens per image is taken to be constant."""
_WEIGHT: Final = 0.3
"""Weight of the latest answer in a moving average."""


class Pictures(Struct):
    """The images of one request: their number, and their total bytes as encoded in the body."""

    number: int
    size: int


@define
class Pace:
    """The estimates for one model; None: not known."""

    answer: float | None = None
    """Seconds of a short answer (`QUANTILE`), used until the seconds per token are known."""
    prompt_token: float | None = None
    """Seconds to the first byte, per token of the prompt."""
    output_token: float = 0.0
    """Seconds from the first byte to the last, per token of the answer; known if ``prompt_token`` is."""
    output: float = 0.0
    """Tokens of a short answer (`QUANTILE`); known if ``prompt_token`` is."""
    _seconds: Recent = field(factory=lambda: Recent())
    _outputs: Recent = field(factory=lambda: Recent())
    _most: float = LONGEST_TOKEN
    """Bytes per token that no prompt is expected to exceed."""
    _usual: float | None = None
    """Average bytes per token; None: unknown."""
    _ratios: deque[float] = field(factory=lambda: deque(maxlen=RECENT))
    """Bytes per token of the latest answers."""
    _sum: float = 0.0
    """Sum of ``_ratios``."""
    _largest: float = 0.0
    """Maximum of ``_ratios``."""
    _pictures: deque[tuple[float, float]] = field(factory=lambda: deque(maxlen=RECENT))
    """For each of the latest answers with images: min tokens per image, and bytes per image."""
    _picture: float = PICTURE_USUAL
    """Average tokens per image."""

    def learn(
        self, size: int, prompt: int, output: int, first: float | None, total: float, pictures: Pictures | None = None
    ) -> None:
        """Learns from one answer. `size`: bytes of its request without the `pictures`; `prompt`, `output`: tokens;
        `first`, `total`: seconds to the first byte, and to the last."""
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
        """Adds a ratio and updates the sum and the maximum. The sum is computed anew, so that rounding errors do not
        accumulate."""
        ratios = self._ratios
        ratios.append(ratio)
        self._largest, self._sum = max(ratios), sum(ratios)
        if len(ratios) >= LEARNED_MIN:
            self._most, self._usual = MARGIN * self._largest, self._sum / len(ratios)

    def _learn_pictures(self, size: int, prompt: int, pictures: Pictures) -> None:
        """Learns the tokens per image: those of the prompt minus the estimate for its text."""
        if self._usual is None:
            return
        words = size / self._usual
        surely, likely = (max(prompt - part * words, 0.0) / pictures.number for part in (MARGIN, 1.0))
        self._pictures.append((surely, pictures.size / pictures.number))
        self._picture = likely if len(self._pictures) == 1 else self._picture + _WEIGHT * (likely - self._picture)

    def seconds(self, size: int, pictures: Pictures | None = None) -> float:
        """Expected seconds of a request with `size` bytes and `pictures`; 0: unknown."""
        usual, for_prompt = self._usual, self.prompt_token
        if usual is None or for_prompt is None:
            return self.answer or 0.0
        tokens = size / usual
        if pictures is not None:
            tokens += pictures.number * self._picture
        return tokens * for_prompt + self.output * self.output_token

    def tokens(self, size: int) -> int | None:
        """Expected tokens of a prompt of `size` bytes; None: unknown."""
        return round(size / self._usual) if self._usual is not None else None

    def least_tokens(self, size: int, pictures: Pictures | None = None) -> int:
        """Min tokens of a prompt with `size` bytes and `pictures`."""
        if pictures is None:
            return int(size / self._most)
        return int(size / self._most + self._least_of(pictures))

    def _least_of(self, pictures: Pictures) -> float:
        """Min tokens of `pictures`. A model uses a constant number per image, or one that grows with its pixels, and so
        roughly with its bytes. Unless the number is known to be constant, the smaller of the two estimates."""
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
    """The latest `LENGTHS` values, also kept sorted."""

    _latest: deque[float] = field(factory=lambda: deque(maxlen=LENGTHS))
    _sorted: list[float] = field(factory=list)

    def short(self, value: float) -> float:
        """Adds `value`. Returns the value at `QUANTILE`."""
        latest, ordered = self._latest, self._sorted
        if len(ordered) == LENGTHS:
            del ordered[bisect_left(ordered, latest[0])]
        latest.append(value)  # and the oldest is gone
        insort(ordered, value)
        return ordered[len(ordered) // _PART]
