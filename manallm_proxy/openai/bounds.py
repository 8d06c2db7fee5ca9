"""Limits on the structure of a request, checked on its bytes before any object is created.

A limit on bytes alone is not enough: 32 MiB hold ten million empty lists, and creating an object for each of them
blocks all other requests for seconds. So the structure is counted first, in slices, and counting stops at the limit.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Final

import msgspec

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.shortened import Shortened
from manallm_proxy.openai.character_counts import closed_in, number_of, opened_in
from manallm_proxy.openai.json_object import DecodeErrors
from manallm_proxy.openai.json_structure import Bounds, Count, TooMuch, structure_of
from manallm_proxy.openai.large import LARGE_PARTS
from manallm_proxy.openai.long_values import MOST

_SLICE: Final = 32 * 1024
"""Bytes scanned per call, so that no call into C holds the GIL for long."""
_COUNTABLE: Final = 256 * 1024
"""Max bytes in which one call may count a character, and which one call may parse."""
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_AT_ONCE: Final = 40_000
"""Max commas of a body whose lists may be split in one call: two milliseconds."""
_SHORT_PER_LONG: Final = 8
"""Members of a list whose length is looked at in the time that it takes to look at one that is long."""
_TOGETHER: Final = 16
"""Members whose brackets are counted in one call: so many functions open some 150."""
_KEYS_AT_ONCE: Final = 8000
"""The same for an object: a key takes five times as long as a value."""
_NEAREST: Final = 1024
"""Min bytes by which the place of a cut is moved."""


class NeedsFullScan(Exception):
    """The check would take milliseconds, so it must run in a thread."""


def count_by_characters(body: bytes, bounds: Bounds, *, keys: bool = True) -> tuple[int, bool]:
    """`check_structure` by counting characters only: the result, and whether that was conclusive.

    `keys`: whether to count those at the top; else the caller does, which costs less where it splits the body anyway.
    """
    size = len(body)
    if size <= 6 * bounds.keys:  # the common case: short
        opened = 2 * size - len(body.replace(b"{", b"")) - len(body.replace(b"[", b""))
        if opened <= bounds.depth and opened <= bounds.messages and opened <= bounds.parts and size <= bounds.elements:
            return opened, True
    if size > MOST:
        return 0, False
    opened = _opened_if_shallow(body, bounds.depth)
    if opened > min(bounds.messages, bounds.parts):
        return 0, False
    few_keys = not keys or size <= 6 * bounds.keys or number_of(b":", body, bounds.keys) <= bounds.keys
    return opened, few_keys and _are_few(body, opened, bounds)


def count_by_members(body: bytes, short: Shortened | None, bounds: Bounds, most: int = sys.maxsize) -> int | None:
    """`check_structure` by the lengths of members; None: inconclusive, so that a walk through `body` is needed.

    `short`: the short form, if known. Raises NeedsFullScan for more than `most` members, of a microsecond each.
    """
    size = len(body)
    if size > MOST or not may_be_split(body):
        return None
    opened = _opened_in_long(body, short, bounds, most) if short is not None else None
    if opened is None and size <= _COUNTABLE:
        opened = _opened_in_members(body, bounds, most)
    if opened is None or opened > bounds.parts:
        return None
    return opened if _are_few(body, opened, bounds) else None


def may_be_split(body: bytes) -> bool:
    """Whether one call may split the lists of `body`, judged by its commas."""
    return len(body) <= 2 * _AT_ONCE or number_of(b",", body, _AT_ONCE) <= _AT_ONCE


def check_structure(body: bytes, bounds: Bounds) -> int:
    """The number of objects and lists in a body, which may be broken JSON; slightly too high if its texts hold braces.

    Raises InvalidRequest if a limit of `bounds` is exceeded.
    """
    try:
        return count_structure(body, bounds, "limits")
    except TooMuch as error:
        raise InvalidRequest(f"the request {error}") from None


def count_structure(body: bytes, bounds: Bounds, section: str) -> int:
    """As `check_structure`, but raises TooMuch. `section`: the section of the configuration that has the limits."""
    opened, sure = count_by_characters(body, bounds)
    if not sure and len(body) <= _COUNTABLE and (found := count_by_members(body, None, bounds)) is not None:
        opened, sure = found, True
    if sure:  # nearly every request ends here
        return opened
    count = Count(bounds, section)
    for structure, quotes in structure_of(body):
        count.add(structure, quotes)
    return count.parts


def _are_few(body: bytes, opened: int, bounds: Bounds) -> bool:
    """Whether `body` with `opened` brackets is known to have no more elements than it may have.

    A text counts twice, and so does a key, whatever its value: they take several times the memory of a number.
    """
    most = bounds.elements
    if len(body) <= most + most // 2:  # the shortest two, an empty text, take three bytes with their comma
        return True
    most //= 4  # as if each value was a text and had a key
    return opened + number_of(b",", body, most) < most


def _opened_if_shallow(text: bytes, depth: int) -> int:
    """An upper bound for the objects and lists in `text`, if it is nested at most `depth` levels; sys.maxsize: unknown.

    Wherever `text` is cut: what is before the cut is at most as deep as brackets open there, and what is behind it as
    brackets close there, since JSON closes what it opens; for the same reason, no more open behind it than close. What
    is no JSON is no deeper than its decoder goes. Brackets in strings only make the numbers greater.
    """
    most, cut, step = 2 * depth, len(text) // 2, len(text) // 4
    before = opened_in(text, most, 0, cut)
    behind = closed_in(text, most - before, cut) if before <= most else 0
    while before + behind <= most:
        if before <= depth and behind <= depth:
            return before + behind
        if step < _NEAREST:
            break
        if behind > depth:  # later
            before += opened_in(text, most, cut, cut + step)
            behind -= closed_in(text, most, cut, cut + step)
            cut += step
        else:
            cut -= step
            before -= opened_in(text, most, cut, cut + step)
            behind += closed_in(text, most, cut, cut + step)
        step //= 2
    return sys.maxsize


def _commas(text: bytes, enough: int) -> int:
    """Number of commas, without those in strings if there are more than `enough`. Stops counting above `enough`."""
    number = number_of(b",", text, enough)
    if number <= enough:
        return number
    number = 0
    for structure, _ in structure_of(text):
        number += structure.count(b",")
        if number > enough:
            break
    return number


def _opened_in_long(body: bytes, short: Shortened, bounds: Bounds, most: int) -> int | None:
    """Counts the short rest exactly; in the long values, short members cannot be deeply nested."""
    above = opened_in(short.left)  # the levels above a long value, which may be nested itself
    depth = bounds.depth - above - 1
    try:
        values = [each for each in short.values if each.members is None]
        lists = [each.members for each in short.values if each.members is not None]
        lists += [_LIST.decode(each.value) for each in values if _starts(each.value, b"[")]
        _refuse_many(lists, _SHORT_PER_LONG * most)
        if depth < 1 or above + sum(map(len, lists)) > bounds.messages:
            return None
        count_structure(short.left, bounds, "limits")
        objects = (each.value for each in values if _starts(each.value, b"{"))
        if not _are_shallow(chain(objects, *lists), depth, most):
            return None
    except (TooMuch, *DecodeErrors):
        return None
    size = len(body)
    if size > 2 * min(bounds.parts, bounds.elements):
        return opened_in(body, bounds.parts)
    opened = opened_in(body, LARGE_PARTS)
    return opened if opened <= LARGE_PARTS else size // 2


def _are_shallow(values: Iterable[msgspec.Raw], depth: int, most: int) -> bool:
    """Whether each of `values` is known to be nested at most `depth` levels.

    Raises NeedsFullScan if more than `most` of their members have to be looked at.
    """
    pending: list[tuple[Iterable[msgspec.Raw], int]] = [(values, depth)]
    while pending:
        values, depth = pending.pop()
        longer = [value for value in values if len(value) > 2 * depth]  # a level takes two bytes
        if len(longer) > most:
            raise NeedsFullScan
        for value in _not_few(longer, depth):
            if _starts(value, b'"') or _opened_if_shallow(text := bytes(value), depth) < sys.maxsize:
                continue
            members = _members(text, most) if depth > 1 else None
            if members is None:
                return False
            most -= len(members)
            pending.append((members, depth - 1))
    return True


def _not_few(values: list[msgspec.Raw], depth: int) -> Iterator[msgspec.Raw]:
    """Those of `values` that are not known to open at most `depth` brackets, judged by several at once."""
    for at in range(0, len(values), _TOGETHER):
        some = values[at : at + _TOGETHER]
        if sum(map(len, some)) > _SLICE or opened_in(b"".join(some), depth) > depth:
            yield from some


def _members(text: bytes, most: int) -> Collection[msgspec.Raw] | None:
    """The values in an object or a list; None: an object of too many. Raises NeedsFullScan for more than `most`."""
    if _commas(text, _KEYS_AT_ONCE) > _KEYS_AT_ONCE:
        if most < _KEYS_AT_ONCE:
            raise NeedsFullScan
        if text.startswith(b"{"):
            return None
    members = _LIST.decode(text) if text.startswith(b"[") else _OBJECT.decode(text).values()
    if len(members) > most:
        raise NeedsFullScan
    return members


def _starts(value: msgspec.Raw, bracket: bytes) -> bool:
    return memoryview(value)[:1] == bracket


def _refuse_many(lists: list[list[msgspec.Raw]], most: int) -> None:
    if sum(map(len, lists)) > most:
        raise NeedsFullScan


def _opened_in_members(body: bytes, bounds: Bounds, most: int) -> int | None:
    """As `_opened_in_long`, for all keys."""
    if _commas(body, _KEYS_AT_ONCE) > _KEYS_AT_ONCE:
        return None
    try:
        values = _OBJECT.decode(body)
        texts = [bytes(value) for value in values.values()]
        lists = [_LIST.decode(text) for text in texts if text[:1] == b"["]
    except DecodeErrors:
        return None
    _refuse_many(lists, most)
    if len(values) > bounds.keys or sum(map(len, lists)) > bounds.messages:
        return None
    members = [bytes(member) for each in lists for member in each]
    members += [text for text in texts if text[:1] != b"["]
    opened = opened_in(body)
    if opened_in(b"".join(members)) + len(lists) + 1 != opened:  # a duplicate key, or one with a brace
        return None
    longer = (member for member in members if len(member) + 2 > bounds.depth)  # the others cannot be nested so deeply
    return opened if max(map(opened_in, longer), default=0) + 2 <= bounds.depth else None
