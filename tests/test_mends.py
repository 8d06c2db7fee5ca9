"""The list of mends as a whole, and what is learned by them of each model. What each does has tests of its own."""

from __future__ import annotations

import json

from manallm_proxy.contract.provider import Call, Endpoint, RequestSummary
from manallm_proxy.openai.json_object import split_object
from manallm_proxy.providers.mending.learned import LEARNED_LIMIT, Learned
from manallm_proxy.providers.mending.mends import CONTRARY, USAGE, accepted, may_change, mended

NOTHING: frozenset[str] = frozenset()


def chat(*, relays: bool, **fields: object) -> Call:
    body = json.dumps({"model": "m", "messages": [], **fields}, separators=(",", ":")).encode()
    summary = RequestSummary("m", True, False, frozenset(), split_object(body)[1])
    return Call(Endpoint.CHAT, summary, body, "id", relays=relays)


def test_what_is_learned_of_a_model_is_added_and_its_contrary_forgotten() -> None:
    learned = Learned(CONTRARY)
    assert learned.learn("m", []) == set() and not learned.by_model
    assert learned.learn("m", [USAGE, "max_tokens"]) == {USAGE, "max_tokens"}
    assert learned.learn("m", [USAGE]) == set()
    assert learned.learn("m", ["max_completion_tokens"]) == {"max_completion_tokens"}
    assert learned.of("m") == {USAGE, "max_completion_tokens"}
    learned.learn("m", ["needs_reasoning"])
    learned.learn("m", ["reasoning", "ids"])
    assert learned.of("m") == {USAGE, "max_completion_tokens", "reasoning", "ids"}
    assert learned.of("other") == NOTHING


def test_the_model_of_which_something_was_learned_first_is_forgotten_first() -> None:
    learned = Learned()
    for number in range(LEARNED_LIMIT):
        learned.learn(f"m{number}", ["ids"])
    learned.learn("m0", ["reasoning"])
    learned.learn("new", ["ids"])
    assert len(learned.by_model) == LEARNED_LIMIT
    assert learned.of("m0") == {"ids", "reasoning"} and learned.of("m1") == NOTHING


def test_what_was_learned_may_change_only_requests_that_it_is_about() -> None:
    """Else a large one is written in a thread for nothing."""
    for relays in (True, False):
        call = chat(relays=relays)
        assert not may_change(call, set()) and not may_change(call, {USAGE})
        assert may_change(call, {USAGE, "ids"}) and may_change(call, {"schemas"})
        assert may_change(call, {"max_tokens"}) is may_change(call, {"temperature"}) is not relays


def test_a_setting_of_the_clients_own_is_kept() -> None:
    known = frozenset({"temperature", "max_tokens"})
    own = chat(relays=True, temperature=0.5, max_tokens=9)
    assert accepted(own, known) is own
    ours = accepted(chat(relays=False, temperature=0.5, max_tokens=9), known)
    assert json.loads(ours.body) == {"model": "m", "messages": [], "max_completion_tokens": 9}


def test_no_effort_beside_tools_is_left_out_in_place_of_none() -> None:
    """Its refusal names the field as others do that take no effort at all."""
    refusal = b"Function tools with reasoning_effort are not supported, set reasoning_effort to 'none'"
    tools = [{"type": "function", "function": {"name": "f"}}]
    for effort, sent in (("high", "none"), ("none", None)):
        call = chat(relays=False, tools=tools, reasoning_effort=effort)
        again = mended(call, NOTHING, 400, refusal, is_forced=False)
        assert (again and json.loads(again.call.body)["reasoning_effort"]) == sent
