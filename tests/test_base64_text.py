"""Base64 that is looked at in slices is what it is in one go."""

from __future__ import annotations

import base64
import binascii
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.doors.responses.content import read_content
from manallm_proxy.openai import base64_text

TEXTS = st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode())
ODD = st.text("QUJD+/=-_ \n\u00e9", max_size=40)


@given(TEXTS | ODD | st.tuples(TEXTS, TEXTS).map("".join))
@example("QUJD=")
@example("QUJD====")
def test_in_slices_as_in_one_go(text: str) -> None:
    """Padding is at the end alone and makes four characters whole, and each slice is looked at."""
    try:
        wanted = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        wanted = b""
    wanted = b"" if len(text) % 4 or text.endswith("===") else wanted
    with pytest.MonkeyPatch.context() as patch:
        for size in (4, 8, 1024):
            patch.setattr(base64_text, "_SLICE", size)
            found = base64_text.first_bytes(text)
            assert bool(found) is bool(wanted)
            assert wanted.startswith(found)
            body = b'{"data": "%b"}' % text.encode()
            assert base64_text.first_bytes(body, 10, len(body) - 2) == found


def test_no_call_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture of megabytes."""
    sizes: list[int] = []
    real = binascii.a2b_base64

    def decode(text: str, *, strict_mode: bool) -> bytes:
        sizes.append(len(text))
        return real(text, strict_mode=strict_mode)

    monkeypatch.setattr(binascii, "a2b_base64", decode)
    assert base64_text.is_base64("QUJD" * 2**19)
    assert max(sizes) <= 2**18
    assert sum(sizes) == 2**21


def test_a_picture_is_not_copied() -> None:
    """It is looked at where it stands in its URI; to copy megabytes in one call keeps everybody waiting."""

    class Whole(str):
        def replace(self, *args: object) -> str:
            raise AssertionError("copied")

        partition = lower = replace  # type: ignore[assignment]  # of other shapes, and not to be called either

    for uri in ("data:image/png;base64," + "QUJD" * 2**19, "data:image/png;base64," + ("QUJD" * 19 + "\n") * 2**14):
        read_content([{"type": "input_image", "image_url": Whole(uri)}], "input[0].content")
    for uri in ("data:image/png;base64", "data:image/png," + "QUJD" * 2**19, "image/png;base64,QUJD", "data:;base64,"):
        with pytest.raises(InvalidRequest):
            read_content([{"type": "input_image", "image_url": Whole(uri)}], "input[0].content")


@pytest.mark.parametrize("piece", ["QU_D", "QUJD\n", "QUJDQ", "QUJD*"])
def test_no_copy_is_held_of_what_is_not_plain(piece: str) -> None:
    """In the other alphabet, in lines, not padded, or none at all."""
    text = piece * 2**20
    tracemalloc.start()
    try:
        base64_text.is_base64(text)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**21


@given(TEXTS | ODD, ODD, st.booleans())
@example(text="QUJD=", before="", in_lines=False)
def test_from_anywhere(text: str, before: str, in_lines: bool) -> None:
    """What stands before is not looked at, nor are ends of lines."""
    text = "\r\n".join(text) + "\n" * 20 if in_lines else text
    with pytest.MonkeyPatch.context() as patch:
        wanted = bool(base64_text.first_bytes(base64_text.plain(text.replace("\r", "").replace("\n", ""))))
        assert base64_text.is_base64(text) is wanted
        patch.setattr(base64_text, "_SLICE", 8)
        assert base64_text.is_base64(before + text, len(before)) is wanted


def test_any_form_of_it() -> None:
    """Alphabets, padding, lines; and what is none of it."""
    for text, wanted in {
        "_-8": True,
        "/+8=": True,
        "QU\r\nJD": True,
        "QQ": True,
        "QQ==\n": True,
        "Q\nQ==": True,
        "QQ\n==QUJD": False,
        "Q": False,
        "QUJD=": False,
        "": False,
        "é": False,
    }.items():
        assert base64_text.is_base64(text) is wanted, text
