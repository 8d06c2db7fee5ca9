"""The sliding window against a model that remembers everything, and durations as OpenAI writes them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.config.keys_model import ClientKey
from manallm_proxy.contract.door import Client, Door
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.doors.messages.door import MessagesDoor
from manallm_proxy.doors.openai_chat import ChatDoor
from manallm_proxy.doors.responses.door import ResponsesDoor
from manallm_proxy.doors.responses.store import MemoryStore
from manallm_proxy.gateway.client_keys import Caller, digest_of
from manallm_proxy.gateway.ratelimit import SPAN, TokenWindow, Window, format_duration
from manallm_proxy.openai.request import read_summary
from manallm_proxy.openai.token_counts import expected_tokens

STEPS = st.lists(st.floats(0, 100, allow_subnormal=False), max_size=80)


def test_so_many_in_a_minute_and_no_more() -> None:
    """The third waits for the first to be a minute old, not for a fresh minute of the clock."""
    window = Window(2)
    assert [window.take(at) for at in (100.0, 130.0, 159.9)] == [True, True, False]
    assert window.next_in(159.9) == pytest.approx(0.1)
    assert window.reset_in(159.9) == pytest.approx(30.1)
    assert [window.take(at) for at in (160.0, 160.0, 190.0)] == [True, False, True]


def test_it_begins_with_all_of_it() -> None:
    """Nothing used, nothing to wait for, at whatever time the clock begins."""
    window = Window(3)
    assert (window.remaining(0.0), window.next_in(0.0), window.reset_in(0.0)) == (3, 0.0, 0.0)


def test_asking_too_often_costs_nothing() -> None:
    """Refusals are not remembered: neither do they put off the next, nor do they need memory."""
    window = Window(1)
    assert window.take(0.0)
    assert not any(window.take(0.001 * n) for n in range(10_000))
    assert len(window._passed) == 1
    assert window.take(SPAN)


def test_the_limit_may_change_and_what_has_passed_still_counts() -> None:
    """Less: it takes until enough of them are a minute old. More: the difference is there at once."""
    window = Window(3)
    assert [window.take(float(at)) for at in (0, 1, 2)] == [True] * 3
    window.limit = 1
    assert (window.remaining(3.0), window.next_in(3.0)) == (0, 59.0)  # after the last of the three
    window.limit = 5
    assert (window.remaining(3.0), window.next_in(3.0)) == (2, 0.0)


@given(limit=st.integers(1, 6), steps=STEPS)
def test_no_minute_holds_more_than_the_limit(limit: int, steps: list[float]) -> None:
    """Whenever they ask; and none is refused in a minute that has room for it."""
    window, now, passed = Window(limit), 0.0, list[float]()
    for step in steps:
        now += step
        recent = [at for at in passed if now - at < SPAN]
        assert window.remaining(now) == limit - len(recent)
        if window.take(now):
            passed.append(now)
        else:
            assert len(recent) == limit
    for first in passed:
        assert sum(first <= at and at - first < SPAN for at in passed) <= limit


@given(limit=st.integers(1, 6), lower=st.integers(1, 6), steps=STEPS)
def test_what_it_promises_comes_true(limit: int, lower: int, steps: list[float]) -> None:
    """After ``next_in`` one more passes and not before; after ``reset_in`` all of them. Also with another limit."""
    window, now = Window(limit), 0.0
    for step in steps:
        now += step
        window.take(now)
    window.limit = lower
    wait, whole = window.next_in(now), window.reset_in(now)
    assert 0 <= wait <= SPAN
    assert wait <= whole <= SPAN or wait == 0
    if wait > 0.001:
        assert window.remaining(now + wait - 0.001) == 0
    assert window.remaining(now + wait + 0.001) > 0
    assert window.remaining(now + whole + 0.001) == lower


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.0001, "1ms"),
        (0.017, "17ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9994, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (61.5, "1m1.5s"),
    ],
)
def test_durations(seconds: float, wanted: str) -> None:
    """As in OpenAI's documentation, never shorter than the truth."""
    assert format_duration(seconds) == wanted


@given(st.floats(0, 3600))
def test_any_duration_is_one_that_clients_read(seconds: float) -> None:
    """And what they read is what was meant, to the millisecond, rounded up."""
    match = re.fullmatch(r"(?:(\d+)m)?(?:([\d.]+)s)|(\d+)ms", format_duration(seconds))
    assert match is not None
    minutes, rest, milliseconds = match.groups()
    read = int(milliseconds) / 1000 if milliseconds else int(minutes or 0) * 60 + float(rest)
    assert -0.000001 <= read - seconds <= 0.001001


def test_so_many_tokens_in_a_minute() -> None:
    """Reserved, then settled: what was not used is there again, what was used more counts from its end on."""
    window = TokenWindow(100)
    first = window.take(80, 0.0)
    assert first is not None
    assert (window.take(30, 1.0), window.remaining(1.0), window.next_in(30, 1.0)) == (None, 20, 59.0)
    window.settle(first, 50, 2.0)
    second = window.take(30, 3.0)
    assert second is not None and window.remaining(3.0) == 20
    window.settle(second, 45, 50.0)
    assert (window.remaining(50.0), window.reset_in(50.0)) == (5, 60.0)
    assert window.next_in(55, 50.0) == pytest.approx(10.0), "the first leaves just enough"
    assert window.next_in(60, 50.0) == pytest.approx(13.0), "behind the first two"
    assert window.next_in(101, 50.0) is None, "never"
    assert window.remaining(63.0) == 85, "what the stream took more is 13 s old"


def test_what_cost_nothing_leaves_no_trace() -> None:
    """However many requests of a minute failed: nothing is held for them, and nothing has to come free."""
    window = TokenWindow(100)
    kept, failed = window.take(10, 0.0), [window.take(1, 1.0) for _ in range(50)]
    assert kept is not None
    for each in failed:
        assert each is not None
        window.settle(each, 0, 2.0)
    assert len(window._taken) == 1
    assert (window.remaining(3.0), window.reset_in(3.0)) == (90, 57.0)
    window.settle(kept, 0, 3.0)
    assert (window.remaining(3.0), window.reset_in(3.0)) == (100, 0.0)


def test_what_is_settled_late_counts_from_then() -> None:
    """A stream of more than a minute: its reservation is forgotten, what it took beyond is not."""
    window = TokenWindow(100)
    taken = window.take(40, 0.0)
    assert taken is not None and window.remaining(61.0) == 100
    window.settle(taken, 10, 61.0)
    assert window.remaining(61.0) == 100
    window.settle(taken, 90, 62.0)
    assert window.remaining(62.0) == 50


def test_what_another_window_reserved_is_none_of_ours() -> None:
    """A reload takes a key its limit while a request is in flight, and the next one gives it one again."""
    key = ClientKey("a", digest_of("sk-a"), tokens_per_minute=100)
    caller = Caller(key)
    taken = caller.reserve(60, 0, 0.0)
    assert taken is not None
    anything = re.compile(".*")
    for changed in (evolve(key, tokens_per_minute=None), key):
        caller.update(changed, anything)
    caller.settle(taken, 10, 1.0)
    assert caller.tokens is not None
    assert caller.tokens.remaining(1.0) == 100


@given(limit=st.integers(1, 50), steps=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 60)), max_size=60))
def test_no_minute_has_more_tokens(limit: int, steps: list[tuple[float, int]]) -> None:
    """Against a model that remembers everything."""
    window, now = TokenWindow(limit), 0.0
    passed: list[tuple[float, int]] = []
    for wait, tokens in steps:
        now += wait
        within = sum(n for at, n in passed if now - at < SPAN)
        assert window.remaining(now) == limit - within
        taken = window.take(tokens, now)
        assert (taken is not None) is (within + max(tokens, 1) <= limit)
        again = window.next_in(max(tokens, 1), now)
        assert (again is None) is (tokens > limit)
        assert taken is not None or again is None or again > 0
        if taken is not None:
            passed.append((now, max(tokens, 1)))
        elif again is not None:  # as soon as it says, and no sooner
            for then, fits in ((now + again - 1e-6, False), (now + again + 1e-6, True)):
                within = sum(n for at, n in passed if then - at < SPAN)
                assert (within + max(tokens, 1) <= limit) is fits


def test_what_is_expected_of_a_request() -> None:
    """Its bytes, `max_tokens` by either name, times `n`; no sound and no nonsense."""

    def expects(body: str, content_type: str = "application/json") -> tuple[int, int]:
        raw = body.encode()
        summary = read_summary(raw, ("messages", list))
        return expected_tokens(Call(Endpoint.CHAT, summary, raw, "1", content_type=content_type))

    assert expects('{"messages":[]}') == (4, 0)
    assert expects('{"messages":[],"max_tokens":100}')[1] == 100
    assert expects('{"messages":[],"max_tokens":100,"max_completion_tokens":7,"n":3}')[1] == 21
    assert expects('{"messages":[],"max_tokens":4096.0,"n":2.0}')[1] == 8192
    for huge in ("99999999999", "9" * 40, "1e99"):
        assert expects(f'{{"messages":[],"max_tokens":{huge}}}')[1] == 10**9  # and not nothing
    for odd in ("null", "-1", "true", '"9"', "1.5", "-" + "9" * 40, "0"):
        assert expects(f'{{"messages":[],"max_tokens":{odd},"n":{odd}}}')[1] == 0, odd
    picture = "data:image/png;base64," + "A" * 10_000
    part = {"type": "image_url", "image_url": {"url": picture}}
    assert expects(json.dumps({"messages": [{"role": "user", "content": [part]}]}))[0] < 40
    assert expects(json.dumps({"messages": [{"role": "user", "content": picture}]}))[0] > 2000  # it is read as text
    assert expects('{"messages":[]}', "multipart/form-data; boundary=x") == (0, 0)


PICTURE = "A" * 30_000
IMAGE_URL = "data:image/png;base64," + PICTURE
ANTHROPIC = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}


def test_a_picture_is_no_text_in_any_clients_format() -> None:
    """Its bytes say nothing of its tokens; what is sent on in the client's own format is looked at as a chat is."""
    url = {"type": "image_url", "image_url": {"url": IMAGE_URL}}
    ours: dict[str, Any] = {"type": "input_image", "image_url": IMAGE_URL}
    prose = {"type": "text", "text": 'see \\"data:image/ ' + "word " * 2000}
    client = Client("1", dialects=frozenset({"responses", "messages"}))
    doors: list[tuple[Door, str, dict[str, Any], bool]] = [
        (ChatDoor(), "messages", url, True),
        (ResponsesDoor(MemoryStore(lambda: 0.0)), "input", ours, True),
        (MessagesDoor(), "messages", ANTHROPIC, True),
        (ChatDoor(), "messages", prose, False),
        (MessagesDoor(), "messages", {"type": "tool_use", "id": "a", "name": "f", "input": {"type": "image"}}, False),
    ]
    for door, key, part, sees in doors:
        for beside in ("hi", "words " * 5000):
            asked = {
                "model": "a/b",
                "store": False,
                key: [{"role": "user", "content": [part, {"type": "text", "text": beside}]}],
            }
            body = json.dumps(asked).encode()
            reading = door.read(body, client)
            assert isinstance(reading, tuple)
            call = reading[0]
            assert call.summary.needs == ({"vision"} if sees else set()), (door.name, part)
            size = len(body) - (len(PICTURE) if sees else 0)
            assert size - 200 < 4 * expected_tokens(call)[0] <= size + 4, (door.name, len(beside))
