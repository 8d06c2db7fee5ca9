"""The list of mends as a whole, and what is learned by them of each model. What each does has tests of its own."""

from __future__ import annotations

import json
from typing import Any

from manallm_proxy.contract.provider import Call, Endpoint, RequestSummary
from manallm_proxy.openai.json_object import split_object
from manallm_proxy.providers.mending.effort import BESIDE_TOOLS
from manallm_proxy.providers.mending.evidence import is_for_all
from manallm_proxy.providers.mending.history import EXTRAS, REASONING, SIGNATURES
from manallm_proxy.providers.mending.learned import LEARNED_LIMIT, Learned
from manallm_proxy.providers.mending.mends import CONTRARY, USAGE, accepted, may_change, mended
from tests.cases import every

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


@every(
    [
        ("minimal", "supported values are: 'low', 'medium', and 'high'", "low"),
        ("xhigh", "must be one of `none`, `low`, or `medium`", "medium"),
        ("low", "allowed values: minimal, medium", "minimal"),
        ("high", "supported values are: 'low', 'medium', and 'high'", None),
        ("huge", "supported values are: 'low', 'medium', and 'high'", None),
    ]
)
def test_the_nearest_effort_is_the_lower_of_two(asked: str, listed: str, sent: str | None) -> None:
    """What follows it in the request is found by later mends."""
    call = chat(relays=False, reasoning_effort=asked, temperature=0.5, top_p=1, seed=7)
    error = {"error": {"message": f"'reasoning_effort': {listed}"}}
    again = mended(call, NOTHING, 400, json.dumps(error).encode(), is_forced=False)
    if sent is None:
        assert again is None and call.remarks == []
        return
    assert again is not None and json.loads(again.call.body)["reasoning_effort"] == sent
    refusal = b"'temperature' is not supported with this model"
    once_more = mended(again.call, NOTHING, 400, refusal, is_forced=False)
    assert once_more is not None
    assert json.loads(once_more.call.body) == {
        "model": "m",
        "messages": [],
        "reasoning_effort": sent,
        "top_p": 1,
        "seed": 7,
    }


CALLED: dict[str, Any] = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": '{"x":1}'}}],
}
TALK = [{"role": "user", "content": "hi"}, CALLED, {"role": "tool", "tool_call_id": "c1", "content": "3"}]
GOOD = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@every(
    [
        b"Invalid arguments: no JSON (char 3)",
        b"Unsupported parameter: 'foo' is not supported",
        b"object schema missing properties",
        b"must be followed by tool messages",
        b"Tool call id was abc but must be a-z, A-Z, 0-9, with a length of 9.",
        b"roles must alternate",
        b"thinking may not be enabled when tool_choice forces tool use",
    ]
)
def test_nothing_is_noted_where_nothing_is_to_change(refusal: bytes) -> None:
    """The log says of each remark that something was sent otherwise than it came."""
    used = json.loads(json.dumps(TALK).replace("c1", "abcdefghi"))
    call = chat(relays=False, messages=used, tools=[GOOD], reasoning_effort="high")
    assert mended(call, NOTHING, 400, refusal, is_forced=False) is None
    assert call.remarks == []


def test_who_offers_no_tools_may_think_where_tools_forbid_it() -> None:
    nothing: tuple[Any, ...] = ([], None)
    for tools in nothing:
        call = chat(relays=True, tools=tools)
        assert accepted(call, frozenset({BESIDE_TOOLS})) is call
    assert json.loads(accepted(chat(relays=True, tools=[GOOD]), frozenset({BESIDE_TOOLS})).body)["reasoning_effort"]


def test_a_history_that_is_none_teaches_nothing() -> None:
    """It is the provider's to refuse."""
    for what in (REASONING, EXTRAS, SIGNATURES):
        assert not is_for_all(chat(relays=True, messages=["x"]), what)
        assert not is_for_all(chat(relays=True, messages=[{"role": "assistant", "tool_calls": ["x"]}]), SIGNATURES)
        assert is_for_all(chat(relays=True, messages=TALK), what)
    for signature, usual in (("c2lnbmVk", True), ("unsupported", False)):
        signed = {**CALLED["tool_calls"][0], "extra_content": {"google": {"thought_signature": signature}}}
        both = [{"role": "assistant", "tool_calls": [CALLED["tool_calls"][0], signed]}]
        assert is_for_all(chat(relays=True, messages=both), SIGNATURES) is usual
