"""Tells a chunk that only adds words by its bytes: nearly all chunks of a stream are alike but for these.

A chunk that was read once is a pattern for those after it. Where another begins and ends with the same bytes, and what
is between them is one JSON string, it can say nothing but that string in the same place, so nothing else is read.
OpenAI pads its chunks with a string of random length (``obfuscation``) at their end, which is taken off before.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec
from attrs import define, field

from manallm_proxy.contract.answers import Delta
from manallm_proxy.openai.json_object import DecodeErrors

_CONTENT: Final = re.compile(rb'"content"\s*:\s*("(?:[^"\\]|\\.)*")')
_KEY: Final = re.compile(rb'"content"\s*:')
_PADDING: Final = b',"obfuscation":"'
_PADDED: Final = re.compile(rb',"obfuscation":"[^"\\\x00-\x1f]*"\}\n\n')
_END: Final = b"}\n\n"
_STRING: Final = msgspec.json.Decoder(str)


@define
class PlainChunks:
    """The pattern of one stream, once there is one."""

    _front: bytes = field(default=b"", repr=False)
    """Up to the quote that opens the words."""
    _tail: bytes = field(default=b"", repr=False)
    """From the quote that closes them, without padding."""
    _shortest: int = 0
    _is_padded: bool = False

    def words(self, data: bytes) -> str:
        """What `data` adds, if it is one whole chunk of the pattern; else empty."""
        if not self._shortest or not data.startswith(self._front):
            return ""
        if self._is_padded:
            data = _without_padding(data)
        if len(data) < self._shortest or not data.endswith(self._tail):
            return ""
        try:
            return _STRING.decode(data[len(self._front) - 1 : len(data) - len(self._tail) + 1])
        except DecodeErrors:
            return ""

    def learn(self, data: bytes, delta: Delta) -> None:
        """Takes `data`, which is one whole event and was read as `delta`, as the pattern if it has words alone."""
        bare = _without_padding(data)
        found = _CONTENT.search(bare)
        if found is None or delta != Delta(content=delta.content) or len(_KEY.findall(bare)) != 1:
            return
        try:
            if _STRING.decode(found[1]) != delta.content:
                return
        except DecodeErrors:
            return
        self._front, self._tail = bare[: found.start(1) + 1], bare[found.end(1) - 1 :]
        self._shortest, self._is_padded = len(self._front) + len(self._tail), bare is not data


def _without_padding(data: bytes) -> bytes:
    """A chunk without its last member, where that is only there to hide its length; else `data` itself."""
    at = data.rfind(_PADDING)
    return data[:at] + _END if at >= 0 and _PADDED.fullmatch(data, at) else data
