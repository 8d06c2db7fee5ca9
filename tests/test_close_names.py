"""The message about an unknown alias: the likely one is found, and thousands of aliases cost no more than hundreds."""

from __future__ import annotations

import difflib

import pytest

from manallm_proxy.gateway.close_names import LISTED, unknown_alias

MANY = [f"mana/team-{n:04}" for n in range(5000)]


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("mana/fast-tex", "mana/fast-text"),
        ("mana/fastext", "mana/fast-text"),
        ("mana/gast-text", "mana/fast-text"),
        ("mana/fsat-text", "mana/fast-text"),
        ("mana/fast-text-x", "mana/fast-text"),
        ("mana/team-4711x", "mana/team-4711"),
        ("mana/tam-4711", "mana/team-4711"),
    ],
)
def test_a_slip_is_found_among_many(wanted: str, meant: str) -> None:
    assert f"Did you mean {meant}?" in unknown_alias(wanted, [*MANY, "mana/fast-text"], None)


def test_what_is_nothing_like_an_alias_gets_no_hint() -> None:
    assert "Did you mean" not in unknown_alias("mana/zzzzzzzzzzzz", MANY, None)


def test_few_names_are_all_listed() -> None:
    told = unknown_alias("mana/c", ["mana/aaaaaa", "mana/bbbbbb"], None)
    assert told == "no alias of that name. Known: mana/aaaaaa, mana/bbbbbb"


def test_a_key_is_told_only_what_it_may_use() -> None:
    told = unknown_alias("mana/team-9", ["mana/team-1", "mana/other"], lambda name: name == "mana/other")
    assert "team-1" not in told
    assert told.endswith("Known: mana/other")


def test_thousands_are_neither_compared_nor_matched_nor_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong name among 1,000 aliases held the loop for 17 ms; any client may send it."""
    compared: list[int] = []
    matched: list[str] = []
    really = difflib.get_close_matches

    def compare(wanted: str, known: list[str], number: int) -> list[str]:
        compared.append(len(known))
        return really(wanted, known, number)

    def allowed(name: str) -> bool:
        matched.append(name)
        return True

    monkeypatch.setattr(difflib, "get_close_matches", compare)
    told = unknown_alias("mana/team-47111", MANY, allowed)
    assert sum(compared) <= 64
    assert len(matched) <= 64 + LISTED
    assert told.count("mana/") <= LISTED + 1
    assert told.endswith("and more, GET /v1/aliases lists them")
