"""Recognises chunks that only add one text by their bytes: nearly all chunks of a stream differ only in that.

The text may be content, reasoning, or arguments of a tool call.

A chunk that was parsed once becomes the pattern for the next ones. If another begins and ends with the same bytes
around one JSON string, it can contain nothing else, so nothing else is parsed.
OpenAI pads its chunks with a string of random length (``obfuscation``) at their end, which is removed first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from attrs import field

from manallm_proxy.contract.answers import CallArguments, Delta, Texts, Thoughts, Words
from manallm_proxy.contract.records import define
from manallm_proxy.openai.json_object import DecodeErrors, decode, encode
from manallm_proxy.openai.plain_text import Splice, are_texts, decode_string, is_text

_KEYS: Final = {
    key: re.compile(rb'"%b"\s*:\s*' % key.encode())
    for key in ("content", "reasoning_content", "reasoning", "arguments")
}
_QUOTED: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"')
_SAID: Final = re.compile(rb'"(?:content|reasoning_content|reasoning|text|arguments)"\s*:\s*("(?:[^"\\]++|\\.)++")')
"""The text in a relayed chunk, for which the kind of text does not matter."""
_PADDING: Final = b',"obfuscation":"'
_PADDED: Final = re.compile(rb',"obfuscation":"[^"\\\x00-\x1f]*"\}\n\n')
_END: Final = b"}\n\n"
_BLANK: Final = b"\n\n"


@define
class PlainChunks:
    """The pattern of one stream, once it is known."""

    _front: bytes = field(default=b"", repr=False)
    """The bytes up to the text's opening quote."""
    _tail: bytes = field(default=b"", repr=False)
    """From the quote that closes them, without padding. It ends with a blank line, which no JSON string holds."""
    _shortest: int = 0
    _is_padded: bool = False
    make: Callable[[Sequence[bytes]], Texts] = Words
    """Makes a step from recognised texts."""
    _is_call: bool = False

    @property
    def is_known(self) -> bool:
        """Whether a pattern is known."""
        return self._shortest > 0

    def read(self, data: bytes) -> tuple[Sequence[bytes], int]:
        """(texts, bytes) of the chunks at the start of `data` that match: each text as the content of a JSON string,
        and the number of bytes of these chunks; nothing and 0 if none matches. Of padded ones only one is read."""
        if not self._shortest or not data.startswith(self._front):
            return (), 0
        used = len(data)
        if self._is_padded:
            data = _without_padding(data)
        if data.endswith(self._tail):  # the common case: one chunk
            quoted = data[len(self._front) - 1 : len(data) - len(self._tail) + 1]
            try:
                if decode_string(quoted):
                    return (quoted[1:-1],), used
            except DecodeErrors:
                pass
        end = data.rfind(self._tail) + len(self._tail)
        if self._is_padded or end < self._shortest:
            return (), 0
        # By a short separator: for a long one, `split` works out anew behind each part how to search for it (0.8 µs).
        events = data[: end - len(_BLANK)].split(_BLANK)
        front, tail = self._front, self._tail[: -len(_BLANK)]
        start, stop = len(front), -len(tail)
        texts = [event[start:stop] for event in events if event.startswith(front) and event.endswith(tail)]
        return (texts, end) if len(texts) == len(events) and are_texts(texts) else ((), 0)

    def learn(self, data: bytes, delta: Delta) -> None:
        """Makes `data`, one whole event that was parsed as `delta`, the pattern, if it only adds one text."""
        fit = _fit(delta)
        if fit is None:
            return
        key, text, make = fit
        bare = _without_padding(data)
        found = _KEYS[key].search(bare)
        said = _QUOTED.match(bare, found.end()) if found is not None else None
        if said is None or len(_KEYS[key].findall(bare)) != 1:
            return
        try:
            if decode(said[0], type=str) != text:
                return
        except DecodeErrors:
            return
        if b"\\" in bare[: said.start()] or b"\\" in bare[said.end() :]:
            return  # of a duplicate member, perhaps under an escaped name, the last one counts
        self._take(bare, said.start() + 1, said.end() - 1)
        self._is_padded, self.make, self._is_call = bare is not data, make, key == "arguments"

    def forget_calls(self) -> None:
        """Must be called for each parsed part of a tool call, since the next part may begin another call."""
        if self._is_call:
            self._shortest = 0

    def learn_relayed(self, data: bytes, sent: bytes) -> Splice | None:
        """Makes `data`, one whole event that is neither an end nor an error, the pattern, if it has text. Returns the
        bytes around the text in `sent`, its form for the client; None if it cannot be a pattern."""
        found, again = _SAID.search(data), _SAID.search(sent)
        if found is None or again is None or found[1] != again[1] or len(_SAID.findall(data)) != 1 or _PADDING in data:
            return None
        if not is_text(found[1][1:-1]):
            return None  # in what is no JSON the model kept its name
        self._take(data, found.start(1) + 1, found.end(1) - 1)
        return Splice(sent[: again.start(1) + 1], sent[again.end(1) - 1 :])

    def unquoted(self) -> tuple[bytes, bytes]:
        """What stands before and behind the words and their quotes."""
        return self._front[:-1], self._tail[1:]

    def _take(self, data: bytes, start: int, end: int) -> None:
        self._front, self._tail = data[:start], data[end:]
        self._shortest = len(self._front) + len(self._tail)


def _fit(delta: Delta) -> tuple[str, str, Callable[[Sequence[bytes]], Texts]] | None:
    """For a `delta` with a single text: the member's name in a chunk, the text, and the maker of steps; else None."""
    make: Callable[[Sequence[bytes]], Texts] = Words
    if delta.content:
        key, text = "content", delta.content
    elif delta.reasoning:
        key, text = delta.reasoning_key, delta.reasoning
        make = partial(Thoughts, key=key)
    elif len(delta.tool_calls) == 1 and delta.tool_calls[0].arguments.strip():  # blanks alone do not begin a call
        key, text = "arguments", delta.tool_calls[0].arguments
        make = partial(CallArguments, place=delta.tool_calls[0].index)
    else:
        return None
    return (key, text, make) if key in _KEYS and make((encode(text)[1:-1],)) == delta else None


def _without_padding(data: bytes) -> bytes:
    """A chunk without the last member if that is padding; else `data` itself."""
    at = data.rfind(_PADDING)
    return data[:at] + _END if at >= 0 and _PADDED.fullmatch(data, at) else data
