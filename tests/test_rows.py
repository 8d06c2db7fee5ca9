"""A long list of objects is read as a short one is, though in many short calls."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from manallm_proxy.openai.json_object import DecodeErrors
from manallm_proxy.openai.rows import read_rows

LONG = "x" * 1_100_000
ROWS: list[list[dict[str, Any]]] = [
    [{"a": LONG, "b": [1.50, {"c": "]}"}]}],
    [{"a": LONG, "b": LONG, "c": 1, "d": LONG}, {}, {"a": None}],
    [{"a": '"}],[', "b": "\U0001f600\\"}] * 60_000,
    [{"a": [LONG, "\U0001f600"], "\u00e9": {}}, {"b": LONG}],
]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("separators", [(",", ":"), (" ,\n", " : ")])
def test_a_long_list(rows: list[dict[str, Any]], separators: tuple[str, str]) -> None:
    for is_ascii in (True, False):
        text = json.dumps(rows, separators=separators, ensure_ascii=is_ascii).encode()
        read = read_rows(b'{"k": ' + text + b" }", (6, 6 + len(text)))
        assert read == msgspec.json.decode(text, type=list[dict[str, msgspec.Raw]])
        assert [*read[0]] == [*rows[0]]


def test_lone_surrogates() -> None:
    """They are replaced, as in a short list, in all values but long ones, which keep their bytes."""
    short, long = b'{"a":"\\ud800"}', b'{"a":"%b\\ud800","b":"\\ud800"}' % LONG.encode()
    assert read_rows(b"[%b]" % short) == [{"a": msgspec.Raw(b'"\\ufffd"')}]
    rows = read_rows(b"[%b,%b]" % (short, long))
    assert [bytes(rows[n][key])[-9:] for n, key in ((0, "a"), (1, "a"), (1, "b"))] == [
        b'"\\ufffd"',
        b'xx\\ud800"',
        b'"\\ufffd"',
    ]


@pytest.mark.parametrize(
    "odd", [b'"%b"', b"{}%b", b'[1,"%b"]', b'["%b"]', b'[{"a":"%b"]', b'[{"a":"%b"},]', b'[["%b"]]']
)
@pytest.mark.parametrize("size", [9, len(LONG)])
def test_what_is_no_list_of_objects(odd: bytes, size: int) -> None:
    with pytest.raises(DecodeErrors):
        read_rows(odd % (b"x" * size))
