"""Keys without HTTP: what is presented, who it is, what they may; and what a reload leaves of it."""

from __future__ import annotations

import hashlib
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.config.keys_model import ClientKey
from manallm_proxy.contract.errors import AdminOnly, InvalidKey, KeyLimited, ModelNotAllowed
from manallm_proxy.gateway.client_keys import LONGEST, Caller, Keyring, digest_of, presented
from tests.cases import every

KEY = "sk-mana-CANARY"


def key(name: str = "alice", secret: str = KEY, **more: Any) -> ClientKey:
    return ClientKey(name, digest_of(secret), **more)


# What is presented


@pytest.mark.parametrize(
    ("authorization", "api_key", "x_api_key"),
    [
        ([f"Bearer {KEY}"], [], []),
        ([f"bearer {KEY}"], [], []),
        ([f"BEARER   {KEY} "], [], []),
        ([], [KEY], []),
        ([], [], [KEY]),
        ([], [f" {KEY} "], []),
        ([f"Bearer {KEY}"], [KEY], []),  # Continue sends both
        ([f"Bearer {KEY}"], [KEY], [KEY]),
        (["Basic Zm9vOmJhcg=="], [KEY], []),  # nginx asked for a password
        (["Bearer "], [], [KEY]),
        ([KEY], [], [KEY]),
    ],
)
def test_a_key_is_found_wherever_clients_put_it(
    authorization: list[str], api_key: list[str], x_api_key: list[str]
) -> None:
    """Three headers, any case of the scheme, blanks around it; another scheme is for somebody else."""
    assert presented(authorization, api_key, x_api_key) == KEY


@every(
    [
        ([], [], [], "no API key is given"),
        ([""], [""], [""], "no API key is given"),
        (["Bearer"], [], [], "no API key is given"),
        (["Bearer "], [], [], "no API key is given"),
        ([KEY], [], [], "no API key is given"),
        ([f"Basic {KEY}"], [], [], "no API key is given"),
        ([f"Bearer:{KEY}"], [], [], "no API key is given"),
        ([f"Bearer {KEY}", f"Bearer {KEY}"], [], [], "given twice"),
        ([f"Bearer {KEY}", ""], [], [], "given twice"),
        ([], [KEY, KEY], [], "given twice"),
        ([], [], [KEY, KEY], "given twice"),
        ([f"Bearer {KEY}"], ["other"], [], "two different"),
        ([], [KEY], ["other"], "two different"),
        ([f"Bearer Bearer {KEY}"], [], [], "cannot be an API key"),
        ([f"Bearer {KEY}, Bearer {KEY}"], [], [], "cannot be an API key"),
        ([], [KEY + "é"], [], "cannot be an API key"),
        ([], [KEY + "\u00a0"], [], "cannot be an API key"),
        ([f"Bearer {KEY}\u2003"], [], [], "cannot be an API key"),
        ([f"Bearer {KEY}\x0b"], [], [], "cannot be an API key"),
        ([], [KEY + "\udcff"], [], "cannot be an API key"),
        ([], [KEY + "\x00"], [], "cannot be an API key"),
        ([], [KEY + "\u2028x"], [], "cannot be an API key"),
        ([], [KEY + "x" * LONGEST], [], "cannot be an API key"),
    ]
)
def test_a_malformed_key_is_refused_and_not_repeated(
    authorization: list[str], api_key: list[str], x_api_key: list[str], told: str
) -> None:
    """Missing, twice, two, malformed, huge: each in words, none of them the client's."""
    with pytest.raises(InvalidKey) as caught:
        presented(authorization, api_key, x_api_key)
    assert told in caught.value.message
    assert "CANARY" not in "".join(traceback.format_exception(caught.value))
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


TEXT = st.text(max_size=30) | st.text(max_size=20).map(lambda text: f"Bearer {text}") | st.sampled_from([KEY, ""])


@given(st.lists(TEXT, max_size=3), st.lists(TEXT, max_size=2), st.lists(TEXT, max_size=2))
def test_whatever_is_presented_is_a_key_or_refused(first: list[str], second: list[str], third: list[str]) -> None:
    """Never another exception; and what is a key can be hashed and looked up."""
    ring = Keyring.build([key()])
    try:
        found = presented(first, second, third)
        assert ring.caller(found).key.name == "alice"
        assert found == KEY
    except InvalidKey:
        pass


# Who it is


def test_a_key_is_known_by_its_digest() -> None:
    """The right one among others; neither its beginning, nor its digest, nor another case."""
    ring = Keyring.build([key("bob", "other"), key()])
    assert ring.caller(KEY).key.name == "alice"
    for wrong in (KEY[:-1], KEY + "x", KEY.lower(), digest_of(KEY), "other2", ""):
        with pytest.raises(InvalidKey):
            ring.caller(wrong)


def test_no_comparison_touches_the_key() -> None:
    """What is looked up is SHA-256 of what was presented; in the configuration it may be written in either case."""
    assert digest_of(KEY) == hashlib.sha256(KEY.encode()).hexdigest()
    ring = Keyring.build([ClientKey("a", digest_of(KEY).upper())])
    assert set(ring.callers) == {digest_of(KEY)}
    assert ring.caller(KEY).key.name == "a"


def test_what_is_not_known_leaves_nothing_behind() -> None:
    """A thousand guesses later there is one caller."""
    ring = Keyring.build([key()])
    for n in range(1000):
        with pytest.raises(InvalidKey):
            ring.caller(f"guess-{n}")
    assert len(list(ring)) == 1


def test_repr_shows_neither_key_nor_digest() -> None:
    """Whatever logs one of these logs a name."""
    ring = Keyring.build([key()])
    shown = repr(ring) + repr(ring.caller(KEY)) + repr(key())
    assert "alice" in shown
    assert digest_of(KEY) not in shown


# What they may


@pytest.mark.parametrize(
    ("models", "allowed", "refused"),
    [
        (("*",), ["mana/fast", "gpu/a/b:c", "x"], []),
        ((), [], ["mana/fast", "", "gpu/m"]),
        (("mana/*",), ["mana/fast", "mana/"], ["gpu/mana/x", "Mana/fast", "mana"]),
        (("mana/fast", "gpu/m*"), ["mana/fast", "gpu/m", "gpu/m:7b"], ["mana/fast2", "xmana/fast", "gpu/x"]),
        (("*/m",), ["gpu/m", "a/b/m"], ["gpu/mm", "m"]),
        (("gpu/[ab]",), ["gpu/[ab]"], ["gpu/a", "gpu/b"]),
        (("gpu/a?c", "gpu/!a"), ["gpu/a?c", "gpu/!a"], ["gpu/abc", "gpu/b"]),
        (("gpu/a.c|x",), ["gpu/a.c|x"], ["gpu/abc", "x", "gpu/a.c"]),
        (("gpu/*a*b*c",), ["gpu/abc", "gpu/xaxbxc"], ["gpu/acb", "gpu/abcd"]),
    ],
)
def test_patterns(models: tuple[str, ...], allowed: list[str], refused: list[str]) -> None:
    """``*`` is any text and nothing else is special; all of the name must match."""
    caller = Caller(key(models=models))
    assert [name for name in allowed if not caller.may_use(name)] == []
    assert [name for name in refused if caller.may_use(name)] == []


def _matches(pattern: str, name: str) -> bool:
    """The same, as slowly as can be."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(_matches(pattern[1:], name[n:]) for n in range(len(name) + 1))
    return bool(name) and name[0] == pattern[0] and _matches(pattern[1:], name[1:])


@given(st.lists(st.text("ab/*?[]\\|.", max_size=7), max_size=3), st.text("ab/*?[]\\|.\n", max_size=9))
def test_any_pattern_means_what_it_says(patterns: list[str], name: str) -> None:
    """Against a matcher that is too simple to be wrong."""
    assert Caller(key(models=tuple(patterns))).may_use(name) is any(_matches(each, name) for each in patterns)


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    """Neither an operator's pattern nor a client's name can hold the loop (the test's limit is the proof)."""
    assert not Caller(key(models=("*a" * 100 + "b",))).may_use("a" * 400)


def test_refusals_say_who_and_what_to_do() -> None:
    """403 in both cases: the key is known."""
    caller = Caller(key(models=("mana/fast",)))
    caller.require("mana/fast")
    with pytest.raises(ModelNotAllowed, match=r"key 'alice' .* only: mana/fast; .*GET /v1/models") as model:
        caller.require("mana/slow")
    with pytest.raises(ModelNotAllowed, match=r"key 'alice' may use no model; .*can allow more"):
        Caller(key(models=())).require("mana/slow")
    with pytest.raises(AdminOnly, match=r"key 'alice' .* 'admin: true'") as admin:
        caller.require_admin()
    assert (model.value.status, model.value.param, admin.value.status) == (403, "model", 403)
    Caller(key(admin=True)).require_admin()


# How much


def enter(caller: Caller, now: float) -> None:
    """A request whose body came with its head."""
    caller.ask(now)
    caller.enter()


def test_so_many_a_minute() -> None:
    """The refusal says when to try again; the headers say how many requests are left."""
    caller = Caller(key(requests_per_minute=2))
    assert caller.rate_headers(0.0) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "0s",
    }
    for now in (0.0, 10.0):
        enter(caller, now)
        caller.leave()
    with pytest.raises(KeyLimited, match=r"key 'alice' has made 2 requests within a minute.* try again in 40s") as told:
        enter(caller, 20.0)
    assert (told.value.status, told.value.code, told.value.retry_after) == (429, "rate_limit_exceeded", 40.0)
    assert caller.in_flight == 0
    assert list(caller.rate_headers(20.0).values()) == ["2", "0", "50s"]
    enter(caller, 60.0)


def test_so_many_at_once() -> None:
    """What is refused for that is not counted as one of the minute."""
    caller = Caller(key(requests_per_minute=3, concurrent_requests=2))
    enter(caller, 0.0)
    enter(caller, 0.0)
    for _ in range(5):
        with pytest.raises(KeyLimited, match="key 'alice' has 2 requests in flight") as told:
            enter(caller, 0.0)
    assert told.value.retry_after == 1.0
    caller.leave()
    enter(caller, 0.0)
    caller.leave()
    with pytest.raises(KeyLimited, match="within a minute"):
        enter(caller, 0.0)
    assert caller.in_flight == 1


def test_without_limits_nothing_is_kept() -> None:
    """No window, no headers."""
    caller = Caller(key())
    for _ in range(1000):
        enter(caller, 0.0)
    assert caller.rate_headers(0.0) == {}
    assert caller._window is None


# What a reload leaves


def test_what_is_used_outlives_a_reload() -> None:
    """Unchanged or not: a reload is no way to a fresh minute, and requests in flight stay counted."""
    old = Keyring.build([key(requests_per_minute=2, concurrent_requests=2), key("bob", "b")])
    caller = old.caller(KEY)
    enter(caller, 0.0)
    same = Keyring.build([key("bob", "b"), key(requests_per_minute=2, concurrent_requests=2)], old)
    assert same.caller(KEY) is caller
    enter(caller, 0.0)
    wider = Keyring.build([key("carol", requests_per_minute=3, models=("mana/*",))], same)
    assert (caller.key.name, caller.may_use("gpu/m")) == ("alice", True)  # not before it is adopted
    wider.adopt()
    changed = wider.caller(KEY)
    assert (changed.key.name, changed.in_flight, changed.may_use("gpu/m")) == ("carol", 2, False)
    enter(changed, 0.0)
    with pytest.raises(KeyLimited):
        enter(changed, 0.0)
    unlimited = Keyring.build([key()], wider)
    unlimited.adopt()
    enter(unlimited.caller(KEY), 0.0)
    assert unlimited.caller(KEY).rate_headers(0.0) == {}
    counted = Keyring.build([key(tokens_per_minute=10)])
    counted.caller(KEY).reserve(6, 0, 0.0)
    more = Keyring.build([key(tokens_per_minute=20)], counted)
    more.adopt()
    assert more.caller(KEY).rate_headers(0.0)["x-ratelimit-remaining-tokens"] == "14"


def test_a_revoked_key_is_known_to_be_revoked() -> None:
    """Taken out, or exchanged under the same name: its caller is no longer in the ring; another stays."""
    old = Keyring.build([key(), key("bob", "b")])
    alice, bob = old.caller(KEY), old.caller("b")
    rotated = Keyring.build([key(secret="new"), key("bob", "b")], old)
    assert (alice in rotated, bob in rotated, rotated.caller("new") is alice) == (False, True, False)
    with pytest.raises(InvalidKey):
        rotated.caller(KEY)
    assert not Keyring.build([], rotated)
    assert rotated
