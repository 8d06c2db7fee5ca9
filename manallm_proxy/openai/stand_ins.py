"""Long texts of a request that are only carried from one JSON string into another: they are never decoded.

Decoded, a text of 30 MiB with a single emoji takes 120 MiB, since Python holds four bytes for each of its characters;
and to decode and to encode it takes most of a translation's time. So a request is decoded with a short stand-in in
place of each long text, translated, and written with the text's own bytes where the stand-in is then.

A stand-in begins as its text does, so that what looks at a text's beginning sees no difference. It ends with a random
word that no client can know and the place of the rest, in quotes: their backslashes tell how often what holds it was
encoded, and so how often the text is to be.

Base64, such as a picture's, is checked when its request is decoded. What stands in for it is base64 too, without
quotes, since nothing in base64 is ever escaped: whoever checks it, takes a data URI apart or looks at the first bytes
need not know. It is in the same alphabet, and padded if the text is: who changes these (`base64_text.plain`) changes
the stand-in, and so the text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.provider import Span
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.spliced import Body, Part, Spliced
from manallm_proxy.openai import sliced
from manallm_proxy.openai.base64_text import in_first_alphabet, is_base64_line
from manallm_proxy.openai.character_counts import number_of
from manallm_proxy.openai.joined import Growing, joined_bytes
from manallm_proxy.openai.json_object import (
    DecodeErrors,
    checked_object,
    contains,
    decode,
    decode_leniently,
    encode,
    encode_whole,
    holds,
    object_bytes,
    positions,
)
from manallm_proxy.openai.long_strings import LongString, long_strings
from manallm_proxy.openai.request_fields import Fields, decoded
from manallm_proxy.openai.sliced_writer import encoded_pieces

LEAST: Final = sliced.LARGE_BYTES
"""Min bytes of a request in which texts get stand-ins."""
_HEAD: Final = 32
"""Max bytes that a stand-in and its text have in common."""
_BASE64_HEAD: Final = 256
"""The same of base64, in a data URI after its comma. A multiple of four."""
_LONG: Final = 512
"""Min bytes of a text that gets a stand-in."""
_SHORT: Final = 64
"""The same in a request of more than `_MUCH`, among more than `_MANY` objects. To find them takes longer, but a short
text with an emoji takes four bytes for each character, and as many again where several are joined."""
_MUCH: Final = 2**21
"""Bytes. Where there are fewer, to decode them takes no more than 32 MiB beside three times their size."""
_MANY: Final = 5000
_TEXTS: Final = frozenset(
    {b"text", b"content", b"output", b"instructions", b"system", b"prompt", b"arguments", b"thinking"}
    | {b"reasoning", b"reasoning_content", b"refusal"}
)
"""The members that hold texts."""
_BASE64: Final = frozenset({b"data", b"file_data", b"image_url", b"images", b"result", b"url"})
"""Those that hold base64 or a data URI. Anything else in them is decoded: a mistake is then found as in any request."""
_READ: Final = frozenset(
    {b"encrypted_content", b"manallm_carried", b"signature", b"thought_signature"}
    | {b"call_id", b"id", b"tool_call_id", b"tool_use_id", b"file_id", b"previous_response_id", b"user", b"user_id"}
    | {b"filename", b"format", b"model", b"name", b"namespace", b"role", b"status", b"tool_name", b"type", b"effort"}
    | {b"prompt_cache_key", b"safety_identifier", b"service_tier", b"truncation", b"verbosity", b"media_type"}
)
"""Those that are read, compared or looked up, and so have to be decoded. All others are a tool's arguments."""
_OTHERS: Final = 64 * 1024
"""Min bytes of other members that get stand-ins."""
_VIEWED: Final = 1024
"""Min bytes of a text that is not copied to be written."""
_IMAGE: Final = b"![image]("
"""Where a text may hold an image that is cut out, see `assistant_message.without_image_links`."""
_IMAGE_ESCAPED: Final = re.compile(rb"\\u00(?:21|28|5[bBdD]|6[1579dD])")
"""A character of that which is written as an escape, as no usual client does."""
_NOWHERE: Final[Mapping[str, Span]] = MappingProxyType({})
_TAIL: Final = re.compile(rb':(\d+)-(\d+)-(\d+)(h?)(\\*)"')
"""The number of its JSON, start and end of the text there; whether it is `_Text.halved`."""
_BASE64_TAIL: Final = re.compile(rb"(\d{7})(\d{11})(\d{11})(?:----|(\+{4}))?A{0,3}(=*)")
"""The number, start and end, with the word a multiple of four characters; some of the second alphabet, if the text has
any, or what became of them; as many as the text is over a multiple of four; the padding that was added to them."""
_ESCAPES: Final = {1: 0, 3: 1, 7: 2, 15: 3}
"""How often a text is escaped once more, by the backslashes before the quotes of its stand-in."""


class _Misplaced(Exception):
    """A stand-in was changed: a mistake of ours."""


@frozen
class _Text:
    """``start`` and ``end`` of what its stand-in leaves out. ``halved``: it has lone surrogates."""

    start: int
    end: int
    halved: bool = False

    def stand_in(self, word: bytes, body: bytes, number: int) -> bytes:
        """What is in `body`, the JSON of that `number`, instead of it."""
        return b'~\\"%b:%d-%d-%d%b\\"' % (word, number, self.start, self.end, b"h" if self.halved else b"")

    def written(self, body: bytes, escapes: int) -> Iterator[Part]:
        """The text, escaped so often once more."""
        if not escapes and not self.halved:
            yield memoryview(body)[self.start : self.end]
            return
        for piece in sliced.string_pieces(body, self.start, self.end):
            part = encode(decode_leniently(b'"%b"' % piece))[1:-1]  # as what is around it was written
            for _ in range(escapes):
                part = part.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
            yield part


@frozen
class _Base64:
    """The same of base64. ``is_plain``: it is to be written in the first alphabet. ``padding``: to be added."""

    start: int
    end: int
    is_plain: bool = False
    padding: bytes = field(default=b"", repr=False)

    def stand_in(self, word: bytes, body: bytes, number: int) -> bytes:
        others = any(contains(body, other, self.start - _BASE64_HEAD, self.end) for other in (b"-", b"_"))
        over = b"A" * ((self.end - self.start) % 4)
        return b"%b%07d%011d%011d%b%b" % (word, number, self.start, self.end, b"----" if others else b"", over)

    def written(self, body: bytes, _escapes: int) -> Iterator[Part]:
        rest = memoryview(body)[self.start : self.end]
        yield from in_first_alphabet(rest) if self.is_plain else (rest,)
        yield self.padding


@define(eq=False)
class StandIns:
    """The stand-ins in one request, and what is done with the request's values for them."""

    _bodies: list[bytes] = field(factory=list, repr=False)
    """The JSON that the texts are in: the request's, and that of what it refers to."""
    _word: str = ""
    """In each of them."""

    @property
    def has_any(self) -> bool:
        return bool(self._bodies)

    def read(self, data: bytes) -> Any:
        """`data`, which is valid JSON, decoded with stand-ins: for what many of make a large request."""
        return decode_leniently(self.shortened(data, [(0, len(data))]))

    def shortened(self, body: bytes, ranges: Iterable[Span]) -> bytes:
        """`body`, which is valid JSON, with stand-ins in these parts of it."""
        least = _SHORT if len(body) > _MUCH and number_of(b"{", body, _MANY) > _MANY else _LONG
        self._word = self._word or f"manallm{secrets.token_hex(8)}"
        rest, at, growing = memoryview(body), 0, Growing()
        for span in ranges:
            for string in long_strings(body, *span, least):
                if (text := _carried(body, string)) is not None:
                    growing.add(rest[at : text.start])
                    growing.add(text.stand_in(self._word.encode(), body, len(self._bodies)))
                    at = text.end
        if not at:
            return body
        self._bodies.append(body)
        growing.add(rest[at:])
        return growing.take()

    def encode(self, value: Any, large: bool = False) -> Body:
        """`value` with the texts themselves: as `json_object.encode`. `large`: in several short calls."""
        if not self._bodies:
            return encode_whole(value) if large else encode(value)
        return Spliced(tuple(_joined_short(self._parts(value))))

    def encode_whole(self, value: Any) -> bytes:
        """The same in one piece, in several short calls."""
        return joined_bytes(self._parts(value)) if self._bodies else encode_whole(value)

    def object_bytes(self, text: str) -> bytes | None:
        """As `json_object.object_bytes` for the text itself that `text` may stand for."""
        if not self._bodies or self._word not in text:
            return object_bytes(text)
        begin = text.lstrip(" \t\r\n")
        if not begin.startswith(("{", f'~"{self._word}')):  # all that is before the stand-in may be blank
            return None
        return checked_object(joined_bytes(self._utf8(text)))

    def _parts(self, value: Any) -> Iterator[Part]:
        """`value`, encoded, with the texts in place of their stand-ins."""
        growing = Growing()
        for piece in encoded_pieces(value, encode):
            if isinstance(piece, memoryview) and len(piece) > _OTHERS:
                yield from self._completed(growing.take())
                yield piece
            else:
                growing.add(piece)
        yield from self._completed(growing.take())

    def _completed(self, data: bytes) -> Iterator[Part]:
        """`data`, which was encoded, in the same way."""
        rest, at = memoryview(data), 0
        for start, end, text in self._places(data):
            yield rest[at:start]
            yield from text
            at = end
        yield rest[at:]

    def _places(self, data: bytes) -> Iterator[tuple[int, int, Iterator[Part]]]:
        """Start and end of each stand-in, and its text, escaped so often once more as that was."""
        for place in positions(data, self._word.encode()):
            after = place + len(self._word)
            if (tail := _BASE64_TAIL.match(data, after)) is not None:
                number, start, end, others, padding = tail.groups()
                base64 = _Base64(int(start), int(end), bool(others), padding)
                yield place, tail.end(), base64.written(self._bodies[int(number)], 0)
                continue
            tail = _TAIL.match(data, after)
            before = data[max(place - 2 - max(_ESCAPES), 0) : place]
            slashes = len(tail[5]) if tail is not None else 0
            if tail is None or slashes not in _ESCAPES or not before.endswith(b"~" + b"\\" * slashes + b'"'):
                raise _Misplaced
            text = _Text(int(tail[2]), int(tail[3]), bool(tail[4]))
            yield place - 2 - slashes, tail.end(), text.written(self._bodies[int(tail[1])], _ESCAPES[slashes])

    def _utf8(self, text: str) -> Iterator[bytes]:
        """`text` itself, in UTF-8."""
        at = 0
        for found in re.finditer(f'~"{self._word}:(\\d+)-(\\d+)-(\\d+)h?"', text):
            yield text[at : found.start()].encode()
            for piece in sliced.string_pieces(self._bodies[int(found[1])], int(found[2]), int(found[3])):
                yield str(decode_leniently(b'"%b"' % piece)).encode()
            at = found.end()
        yield text[at:].encode()


def _joined_short(parts: Iterator[Part]) -> Iterator[Part]:
    """`parts`, the short ones that follow each other as one: a view of 100 bytes takes 200 itself."""
    growing = Growing()
    for part in parts:
        if len(part) > _VIEWED:
            yield growing.take()
            yield part
        else:
            growing.add(part)
    yield growing.take()


def read_texts(
    body: bytes, keys: Collection[str] = (), spans: Mapping[str, Span] = _NOWHERE
) -> tuple[Fields, StandIns]:
    """`body` decoded, with stand-ins where it is large; it must be valid JSON. `keys`: only in the values of these, by
    the `spans` of all.

    Raises InvalidRequest as `request_fields.decoded`.
    """
    texts = StandIns()
    if len(body) <= LEAST:
        return decoded(body), texts
    ranges = [spans[key] for key in keys if key in spans] if spans else [(0, len(body))]
    return decoded(texts.shortened(body, sorted(ranges))), texts


def _carried(body: bytes, string: LongString) -> _Text | _Base64 | None:
    """What gets a stand-in of `string`; None if it is decoded."""
    if string.key in _BASE64:
        start = 1 + body.find(b",", string.start, string.start + _BASE64_HEAD) or string.start
        end = start + _BASE64_HEAD
        return _Base64(end, string.end) if end < string.end and is_base64_line(body, start, string.end) else None
    if string.key not in _TEXTS and (string.key in _READ or string.end - string.start < _OTHERS):
        return None
    if _may_hold_image(body, string.start, string.end):
        return None
    start = sliced.safe_cut(body, string.start, min(string.start + _HEAD, string.end), string.end)
    return _Text(start, string.end, _is_halved(body, start, string.end))


def _may_hold_image(body: bytes, start: int, end: int) -> bool:
    if contains(body, _IMAGE, start, end):
        return True
    return contains(body, b"\\u00", start, end) and holds(memoryview(body)[start:end], _IMAGE_ESCAPED)


def _is_halved(body: bytes, start: int, end: int) -> bool:
    """Whether there are lone surrogates in the text there."""
    if not (contains(body, b"\\ud", start, end) or contains(body, b"\\uD", start, end)):
        return False
    try:
        for piece in sliced.string_pieces(body, start, end):
            decode(b'"%b"' % piece)
    except DecodeErrors:
        return True
    return False
