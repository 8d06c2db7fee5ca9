"""The order of a tier's targets: decisions without I/O, and the time as a number."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.config.load import load
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Chain, Entry, Strategy, Target, Tier
from manallm_proxy.openai.conversation import PARSED, PREFIX, conversation_prefix
from manallm_proxy.openai.json_object import encode
from manallm_proxy.openai.request import read_summary
from manallm_proxy.routing.tiers import STALE, Asked, Tiers
from tests.cases import every
from tests.proxy import openai, settings, written


def chain(strategy: Strategy, **weights: int) -> Chain:
    """x, a tier of the targets that `weights` names, y."""
    tier = Tier(1, strategy)
    members = [Entry(Target(name, "m"), tier=tier, weight=weight) for name, weight in weights.items()]
    return Chain("mana/t", (Entry(Target("x", "m")), *members, Entry(Target("y", "m"))))


def asked(busy: dict[str, int] | None = None, seed: bytes = b"", streams: bool = False) -> Asked:
    return Asked(lambda target: (busy or {}).get(target.provider, 0), lambda: seed, streams)


def order(tiers: Tiers, of: Chain, request: Asked, now: float = 0.0) -> str:
    """Of the tier alone; what stands around it stays."""
    names = [entry.target.provider for entry in tiers.arranged(of, request, now)]
    assert (names[0], names[-1], len(names)) == ("x", "y", len(of))
    return "".join(names[1:-1])


def test_the_least_busy_is_first() -> None:
    """Among equals each in its turn."""
    tiers, of = Tiers(), chain("least_busy", a=1, b=1, c=1)
    assert order(tiers, of, asked({"a": 2, "b": 1, "c": 3})) == "bac"
    assert [order(tiers, of, asked())[0] for _ in range(6)] == ["a", "c", "b", "a", "c", "b"]


def test_weights_are_kept_exactly_and_evenly() -> None:
    """Three of four, and never the light one twice in a row."""
    tiers, of = Tiers(), chain("weighted", a=3, b=1)
    firsts = "".join(order(tiers, of, asked())[0] for _ in range(8))
    assert firsts == "aabaaaba"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_each_gets_its_share(weights: list[int]) -> None:
    """In as many requests as all weights together."""
    tiers, of = Tiers(), chain("weighted", **{"abcd"[n]: weight for n, weight in enumerate(weights)})
    firsts = Counter(order(tiers, of, asked())[0] for _ in range(sum(weights)))
    assert [firsts["abcd"[n]] for n in range(len(weights))] == weights


def test_the_fastest_is_first_and_the_others_are_looked_at() -> None:
    """Unknown ones first, each once; then by pace; one that was not measured for a minute gets one request."""
    tiers, of = Tiers(), chain("fastest", a=1, b=1)
    assert [order(tiers, of, asked())[0] for _ in range(2)] == ["a", "b"]
    tiers.began(Target("a", "m"), False, 2.0)
    tiers.began(Target("b", "m"), False, 1.0)
    assert {order(tiers, of, asked(), now) for now in (1.0, 2.0, STALE - 1)} == {"ba"}
    assert order(tiers, of, asked(), STALE + 1) == "ab", "it may be faster by now"
    assert order(tiers, of, asked(), STALE + 1) == "ba"
    for _ in range(9):
        tiers.began(Target("a", "m"), False, 0.1)
    assert order(tiers, of, asked(), STALE + 2) == "ab"
    assert order(tiers, of, asked(streams=True), STALE + 2) == "ab", "of streams nothing is known"
    tiers.began(Target("b", "m"), True, 9.0)
    assert order(tiers, of, asked(streams=True), STALE + 2) == "ba"


def test_until_one_has_answered_each_is_asked_in_its_turn() -> None:
    """A burst on a fresh proxy: of nobody a pace is known. Then the one that has answered is first."""
    tiers, of = Tiers(), chain("fastest", a=1, b=1)
    assert [order(tiers, of, asked(), now)[0] for now in (0.0, 0.1, 0.2, 0.3)] == ["a", "b", "a", "b"]
    tiers.began(Target("b", "m"), False, 9.0)
    assert {order(tiers, of, asked(), now) for now in (0.4, 0.5)} == {"ba"}


def test_a_conversation_stays_where_it_is() -> None:
    """And moves only if its target is gone; shares are by weight."""
    of, fewer = chain("sticky", a=3, b=1, c=1), chain("sticky", a=3, c=1)
    seeds = [b"%d" % n for n in range(1000)]
    before = {seed: order(Tiers(), of, asked(seed=seed)) for seed in seeds}
    assert before == {seed: order(Tiers(), of, asked(seed=seed)) for seed in seeds}
    for seed in seeds:
        assert order(Tiers(), fewer, asked(seed=seed)) == before[seed].replace("b", "")
    firsts = Counter(found[0] for found in before.values())
    assert 540 < firsts["a"] < 660 and 150 < firsts["b"] < 250


def test_two_tiers_of_one_chain_are_arranged_apart() -> None:
    """Also beside each other."""
    one, two = Tier(0, "weighted"), Tier(1, "weighted")
    entries = [Entry(Target(name, "m"), tier=tier) for name, tier in (("a", one), ("b", one), ("c", two), ("d", two))]
    of, tiers = Chain("mana/t", tuple(entries)), Tiers()
    found = ["".join(e.target.provider for e in tiers.arranged(of, asked(), 0.0)) for _ in range(2)]
    assert found == ["abcd", "badc"]
    assert list(of.paths()) == ["chain[0].any[0]", "chain[0].any[1]", "chain[1].any[0]", "chain[1].any[1]"]
    assert list(chain("sticky", a=1, b=1).paths()) == ["chain[0]", "chain[1].any[0]", "chain[1].any[1]", "chain[2]"]


def began(**body: Any) -> bytes:
    raw = encode(body)
    key = next(iter(body))
    return conversation_prefix(Call(Endpoint.CHAT, read_summary(raw, (key, (list, str))), raw, "1"))


SYSTEM, USER = {"role": "system", "content": "You are"}, {"role": "user", "content": "Hello"}
MORE = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And?"}]


def test_what_the_requests_of_a_conversation_have_in_common() -> None:
    """The messages up to the first of a user, however long it has become; anything odd is told apart by its bytes."""
    first = began(messages=[SYSTEM, USER])
    assert first and first == began(messages=[SYSTEM, USER, *MORE])
    assert first != began(messages=[SYSTEM, MORE[1]]) and first != began(messages=[USER])
    assert began(prompt="a" * 9999) == began(prompt="a" * 8888) != began(prompt="b")
    assert began(input=[USER]) == began(input=[USER, *MORE]) != began(input=["Hello"])
    long = "a" * PREFIX
    assert began(messages=[{**SYSTEM, "content": long}, USER]) == began(messages=[{**SYSTEM, "content": long}])
    huge = {**USER, "content": "b" * PARSED}
    assert len(began(messages=[SYSTEM, huge])) == PREFIX
    for odd in ([1, 2], [None], [{"role": 3}], []):
        assert isinstance(began(messages=odd), bytes)


TIER: dict[str, Any] = {"any": ["a/m", "b/m"]}
QUICK: dict[str, Any] = {"target": "a/m", "timeouts": {"first_byte": 1}}


@every(
    [
        ([{"any": ["a/m", "c/m"]}], "chain[0].any[1]", "no provider 'c'"),
        ([{"any": ["a/m", {"any": ["b/m"]}]}], "chain[0].any[1]", "a tier within a tier"),
        ([{"any": ["a/m", {"target": "b/m", "pric": 1}]}], "chain[0].any[1].pric", "unknown key"),
        ([{"any": []}], "chain[0].any", "at least one target"),
        ([{"any": "a/m"}], "chain[0].any", "a list"),
        ([{**TIER, "target": "a/m"}], "chain[0].target", "unknown key"),
        (["a/m", {**TIER, "hedge": "120s"}], "chain[1].hedge", "is given up after 120 s"),
        (["a/m", {"any": [QUICK, "b/m"], "hedge": 2}], "chain[1].hedge", "after 1 s"),
        (["a/m", {**TIER, "hedge": 0}], "chain[1].hedge", "longer than 0"),
        (["a/m", {"any": ["b/m"], "hedge": 1}], "chain[1].hedge", "a second target"),
        (["a/m", "b/m", {**TIER, "strategy": "weighted", "weights": [1]}], "chain[2].weights", "each of the 2 targets"),
        (["a/m", "b/m", {**TIER, "weights": [1, 2]}], "chain[2].weights", "weighted or sticky"),
        ([{**TIER, "strategy": "weighted", "weights": [1, 0]}], "chain[0].weights[1]", "from 1 to 1000"),
        ([{**TIER, "strategy": "random"}], "chain[0].strategy", "one of least_busy"),
        (["a/m", "b/m", TIER, {"target": "a/n", "price": {"input": "2"}}], "chain[3].price.input", "a number"),
        ([{"any": [{**QUICK, "dimensions": 3}, {"target": "b/m", "dimensions": 4}]}], "chain[0].any[1].dimensions", ""),
    ]
)  # fmt: skip
def test_mistakes_are_named_by_path(entries: list[Any], path: str, what: str) -> None:
    """One each."""
    providers = {"a": openai("http://127.0.0.1:9"), "b": openai("http://127.0.0.1:9")}
    config = {**settings(providers, entries), "timeouts": {}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "proxy.yaml"
        file.write_text(written(config))
        with pytest.raises(ConfigError) as caught:
            load(file, {})
    [mistake] = caught.value.mistakes
    assert mistake.startswith(f"aliases.mana/test.{path}: ") and what in mistake, mistake


def test_a_tier_is_read(tmp_path: Path) -> None:
    """Entries of it may have settings of their own; the rest comes from alias and provider, as for all."""
    given = {"any": ["a/m", {"target": "b/n", "max_wait": 3}], "strategy": "weighted", "weights": [3, 1], "hedge": "2s"}
    path = tmp_path / "proxy.yaml"
    path.write_text(
        written(settings({"a": openai("http://127.0.0.1:9"), "b": openai("http://127.0.0.1:9")}, [given, "a/z"]))
    )
    chain = load(path, {}).aliases["mana/test"]
    assert [(str(e.target), e.weight, e.tier) for e in chain] == [
        ("a/m", 3, Tier(0, "weighted", 2.0)),
        ("b/n", 1, Tier(0, "weighted", 2.0)),
        ("a/z", 1, None),
    ]
    assert (chain.has_tiers, chain.entries[1].max_wait) == (True, 3.0)
