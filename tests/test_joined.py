"""Long bytes and texts are put together in short calls, and are what one call would have made."""

from __future__ import annotations

import ctypes
import io
import mmap
import resource
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manallm_proxy.openai import joined
from manallm_proxy.openai.allocator import tune_malloc
from manallm_proxy.openai.joined import (
    Growing,
    decoded_text,
    encoded_text,
    joined_ascii,
    joined_bytes,
    joined_lines,
    joined_text,
    tail_of,
)
from tests.examples import examples

PART = joined.PART
LETTERS = st.sampled_from(["a", "é", "€", "😀", "\ud83d", "\x00", "\xff"])


@pytest.fixture(autouse=True, scope="module")
def small_parts() -> Iterator[None]:
    """A few bytes are long here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joined, "SMALL", 8)
        patch.setattr(joined, "PART", 12)
        yield


@given(st.lists(st.binary(max_size=40) | st.binary(max_size=40).map(bytearray), max_size=12))
@settings(max_examples=examples(60))
def test_bytes_are_the_same(parts: list[bytes]) -> None:
    """However long the parts are; they are taken once."""
    growing = Growing()
    for part in parts:
        growing.add(memoryview(part))
    assert growing.take() == joined_bytes(parts) == b"".join(parts)
    assert growing.take() == b""


@given(st.lists(st.text(LETTERS, max_size=40), max_size=12))
@settings(max_examples=examples(80))
@example(["a" * 30, "é" * 30, "€", "😀"])
@example(["", "\ud83d" * 30])
def test_texts_are_the_same(parts: list[str]) -> None:
    """In each of the four ways in which a string is kept, which is the narrowest that its characters fit into."""
    wanted = "".join(parts)
    given_ = [*parts]
    told = joined_text(given_)
    assert told == wanted
    assert hash(told) == hash(wanted)
    assert sys.getsizeof(told) == sys.getsizeof(wanted)
    assert told.isascii() is wanted.isascii()
    if len(wanted) > joined.SMALL and len(parts) > 1:  # nobody else holds it, or would free it once more
        new = wanted + "!"
        assert sys.getrefcount(told) == sys.getrefcount(new)
    assert given_ == ([] if len(wanted) > joined.SMALL else parts)
    for start in (0, 3, len(wanted) // 2):
        assert tail_of(wanted, start) == wanted[start:]
        assert sys.getsizeof(tail_of(wanted, start)) == sys.getsizeof(wanted[start:])
    try:
        data = wanted.encode()
    except UnicodeEncodeError:
        with pytest.raises(UnicodeEncodeError):
            encoded_text(wanted)
    else:
        assert encoded_text(wanted) == data
        assert decoded_text(data) == wanted
    assert joined_lines(parts) == "\n".join(parts)
    assert joined_ascii(len(parts) * 6, iter(["plain "] * len(parts))) == "plain " * len(parts)


def test_a_single_text_is_not_copied() -> None:
    text = "a long text" * 9
    assert joined_text([text]) is text
    assert joined_lines([text]) is text


def test_what_is_no_text_is_refused() -> None:
    """Wherever it stands: cut off at the end, too, and where a part ends."""
    for broken in (b"a" * 11 + b"\xff", b"a" * 12 + b"\xff", "\u20ac".encode() * 9 + b"\xe2\x82", b"\xff" * 9):
        with pytest.raises(UnicodeDecodeError):
            decoded_text(broken)


def test_a_text_of_another_size_is_refused() -> None:
    """Else there would be characters in it that nobody wrote, or too many."""
    for size in (29, 31):
        with pytest.raises((ValueError, IndexError, SystemError)):
            joined_ascii(size, iter(["x" * 10] * 3))


def test_what_grows_is_never_copied_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much room small blocks have left behind in the memory of its thread. A copy touches new pages."""

    def touched_at_once() -> int:
        parts = [libc.malloc(150 * 1024) for _ in range(60)]
        last = libc.malloc(64)
        for part in parts:
            libc.free(part)
        growing, most = Growing(), 0
        for _ in range(200):
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            growing.add(piece)
            most = max(most, resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
        libc.free(last)
        return most

    monkeypatch.setattr(joined, "PART", PART)
    tune_malloc()
    libc, piece = ctypes.CDLL(None), bytes(PART)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(touched_at_once).result() <= 4 * PART // mmap.PAGESIZE


def test_no_call_copies_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part at most, whatever the parts are."""
    written: list[int] = []

    class Counted(io.BytesIO):
        def write(self, data: Any) -> int:
            written.append(len(data))
            return super().write(data)

    parts: list[joined.Part] = [b"x" * 1000, *([b"yz"] * 500), bytearray(300)]
    growing = Growing(Counted())
    for part in parts:
        growing.add(part)
    assert growing.take() == b"".join(parts)
    assert len(written) > 100
    assert max(written) <= joined.PART

    copied: list[int] = []
    api = joined._api()
    assert api is not None, "CPython has it"

    class Api:
        PyUnicode_New, Py_DecRef = api.PyUnicode_New, api.Py_DecRef

        @staticmethod
        def PyUnicode_CopyCharacters(*args: Any) -> int:  # as the library calls it
            copied.append(args[4])
            number: int = api.PyUnicode_CopyCharacters(*args)
            return number

    monkeypatch.setattr(joined, "_api", lambda: Api)
    assert joined_text(["x" * 1000, "é" * 900, "y"]) == "x" * 1000 + "é" * 900 + "y"
    assert sum(copied) == 1901
    assert max(copied) <= joined.PART


def test_without_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another Python joins in one call."""
    monkeypatch.setattr(joined, "_api", lambda: None)
    assert joined_text(["a" * 30, "é"]) == "a" * 30 + "é"
    assert joined_ascii(30, iter(["a" * 30])) == "a" * 30
