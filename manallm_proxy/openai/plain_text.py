"""Steps of an answer that only add text, told and written by their bytes: no JSON is parsed but their strings.

What a JSON string holds between its quotes is the same in every JSON text, so a provider's may stand in a door's event
as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from attrs import field

from manallm_proxy.contract.records import frozen
from manallm_proxy.openai.json_object import DecodeErrors, encode

decode_string: Final = msgspec.json.Decoder(str).decode
MARK: Final = "\x01text\x01"
"""Stands for the text in an event from which a `Splice` is made."""
_MARK: Final = encode(MARK)[1:-1]


def is_string(quoted: bytes) -> bool:
    """Whether `quoted` is one JSON string and not an empty one: valid UTF-8, whole escapes, whole surrogate pairs."""
    try:
        return bool(decode_string(quoted))
    except DecodeErrors:
        return False


def is_text(raw: bytes) -> bool:
    """Whether `raw` is the inside of one."""
    return is_string(b'"%b"' % raw)


def are_texts(texts: Sequence[bytes]) -> bool:
    """Whether each of `texts` is that."""
    if b"" in texts:
        return False
    joined = b" ".join(texts)  # a character may not be cut by what separates two
    if b'"' in joined or b"\\" in joined:
        return all(map(is_text, texts))
    return is_text(joined)


@frozen
class Splice:
    """What stands around the text in each event of a stream."""

    front: bytes = field(repr=False)
    tail: bytes = field(repr=False)
    _between: bytes = field(init=False, repr=False)

    @_between.default
    def _of_two(self) -> bytes:
        return self.tail + self.front

    def write(self, texts: Sequence[bytes]) -> bytes:
        """An event for each of `texts`."""
        if len(texts) == 1:
            return self.front + texts[0] + self.tail
        return b"".join((self.front, self._between.join(texts), self.tail))


def splice(event: bytes) -> Splice | None:
    """That of `event`, whose text is `MARK`; None if that is in it twice."""
    front, _, tail = event.partition(_MARK)
    return Splice(front, tail) if tail and _MARK not in tail else None
