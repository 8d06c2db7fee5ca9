"""Fast path for steps of an answer that only add text: only the JSON strings are parsed, the rest is copied as bytes.

The content of a JSON string is encoded the same way in every JSON text, so a provider's strings can be copied into a
door's events unchanged.
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
"""Placeholder for the text in an event from which a `Splice` is made."""
_MARK: Final = encode(MARK)[1:-1]


def is_string(quoted: bytes) -> bool:
    """Whether `quoted` is one JSON string and not an empty one: valid UTF-8, whole escapes, whole surrogate pairs."""
    try:
        return bool(decode_string(quoted))
    except DecodeErrors:
        return False


def is_text(raw: bytes) -> bool:
    """Whether `raw` is the content of such a string."""
    return is_string(b'"%b"' % raw)


def are_texts(texts: Sequence[bytes]) -> bool:
    """Whether each of `texts` is one."""
    if b"" in texts:
        return False
    joined = b" ".join(texts)  # joining must not hide a character that is cut in two
    if b'"' in joined or b"\\" in joined:
        return all(map(is_text, texts))
    return is_text(joined)


@frozen
class Splice:
    """The constant bytes before and after the text in each event of a stream."""

    front: bytes = field(repr=False)
    tail: bytes = field(repr=False)

    def write(self, texts: Sequence[bytes]) -> bytes:
        """An event for each of `texts`."""
        if len(texts) == 1:
            return self.front + texts[0] + self.tail
        return b"".join((self.front, (self.tail + self.front).join(texts), self.tail))


def splice(event: bytes) -> Splice | None:
    """The splice of `event`, whose text is `MARK`; None if `MARK` occurs twice."""
    front, _, tail = event.partition(_MARK)
    return Splice(front, tail) if tail and _MARK not in tail else None
