"""A whole native answer, however its provider writes it: the members that the proxy knows better, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest
from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Answer, Usage
from manallm_proxy.contract.provider import Call, Endpoint, RequestSummary
from manallm_proxy.contract.provider_errors import EmptyAnswer
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai.usage import plain_usage_of_response, usage_from_responses
from manallm_proxy.providers.native.messages import message
from manallm_proxy.providers.native.responses import response
from tests.cases import every

TARGET = Target("p", "org/m")
TOLD = {"id": b'"resp_ours"', "store": b"false", "previous_response_id": b"null"}
NAMES = ("id", "model", "store", "previous_response_id", "output", "content", 'a "model": "m"', "mödel", "b")
LEAVES: Any = st.one_of(st.none(), st.booleans(), st.sampled_from(["m", "resp_1", '"model":"m"', "\\", "é", "[{"]))
VALUES: Any = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
)
MORE: Any = st.dictionaries(st.sampled_from((*NAMES[4:], "metadata", "tools")), VALUES, max_size=4)
WRITTEN: Any = st.tuples(st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : ")]), st.booleans())


def call(endpoint: Endpoint, told: dict[str, bytes]) -> Call:
    return Call(endpoint, RequestSummary("", False, False, frozenset(), {}), b"{}", "r", response_fields=told)


def shuffled(members: dict[str, Any], order: Any, how: tuple[tuple[str, str], bool]) -> bytes:
    keys = list(members)
    order.shuffle(keys)
    return json.dumps({key: members[key] for key in keys}, separators=how[0], ensure_ascii=how[1]).encode()


@given(MORE, st.sampled_from([True, False, None]), st.randoms(use_true_random=False), WRITTEN)
def test_a_response(more: dict[str, Any], store: bool | None, order: Any, how: tuple[tuple[str, str], bool]) -> None:
    """Id, model and what refers to state are the proxy's; every other value is the provider's own."""
    given_ = {"id": "resp_1", "model": "m", "status": "completed", **more, "output": [{"id": "m", "model": "m"}]}
    given_ |= {} if store is None else {"store": store, "previous_response_id": None}
    answer = response(call(Endpoint.RESPONSES, TOLD), TARGET, shuffled(given_, order, how))
    wanted = {**given_, "id": "resp_ours", "model": "p/org/m", "store": False, "previous_response_id": None}
    assert answer.body is not None and json.loads(answer.body) == wanted


@given(MORE, st.randoms(use_true_random=False), WRITTEN)
@example({"b": {"model": "m"}}, None, ((",", ":"), True))
def test_a_message(more: dict[str, Any], order: Any, how: tuple[tuple[str, str], bool]) -> None:
    """The model is the target."""
    given_ = {**more, "model": "m", "content": [{"type": "text", "text": '"model":"m"', "model": "m"}]}
    body = json.dumps(given_).encode() if order is None else shuffled(given_, order, how)
    answer = message(call(Endpoint.MESSAGES, {}), TARGET, body)
    assert answer.body is not None and json.loads(answer.body) == {**given_, "model": "p/org/m"}


TEXT, CALL = {"type": "text", "text": "hi"}, {"type": "tool_use", "id": "t", "name": "f", "input": {}}
ITEM = {"type": "message", "content": [{"type": "output_text", "text": "hi"}]}


@every(
    [
        (message, {"content": [TEXT]}, True),
        (message, {"content": [CALL]}, True),
        (message, {"content": [{"type": "thinking", "thinking": ""}, TEXT]}, True),
        (message, {"content": [], "stop_reason": "refusal"}, True),
        (message, {"content": [], "stop_reason": "end_turn"}, False),
        (message, {"content": [{**TEXT, "text": ""}, "hi", {}]}, False),
        (response, {"output": [ITEM]}, True),
        (response, {"output": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, True),
        (response, {"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]}, True),
        (response, {"output": []}, False),
        (
            response,
            {"output": ["hi", {}, {"type": "message", "content": "hi"}, {"type": "message", "content": ["hi"]}]},
            False,
        ),
        (response, {"output": [{"type": "reasoning", "summary": []}, {"type": "message", "content": []}]}, False),
    ]
)
def test_an_answer_without_a_word(read: Callable[..., Answer], members: dict[str, Any], said: bool) -> None:
    """With ``fallback_on: [empty]`` it is none, and the next target is asked; a call or a refusal is a word."""
    body = json.dumps({"status": "completed", "model": "m", **members}).encode()
    asked = call(Endpoint.MESSAGES if read is message else Endpoint.RESPONSES, {})
    assert read(asked, TARGET, body).body is not None
    with nullcontext() if said else pytest.raises(EmptyAnswer):
        read(evolve(asked, waits_for_words=True), TARGET, body)


COUNTER: Any = st.integers(-2, 10**5) | st.sampled_from([None, 2**63, 4.0, 1.5, True, "3", [], {}])
DETAILS: Any = (
    st.none()
    | st.dictionaries(st.sampled_from(["cached_tokens", "cache_write_tokens", "reasoning_tokens", "x"]), COUNTER)
    | COUNTER
)
USAGE: Any = COUNTER | st.fixed_dictionaries(
    {},
    optional={
        "input_tokens": COUNTER,
        "output_tokens": COUNTER,
        "input_tokens_details": DETAILS,
        "output_tokens_details": DETAILS,
        "total_tokens": COUNTER,
    },
)


@given(USAGE)
def test_usage_that_is_told_at_once(counted: Any) -> None:
    """Is the same; what is odd is looked at more closely."""
    told = plain_usage_of_response(msgspec.Raw(json.dumps(counted).encode()))
    assert told is None or told == usage_from_responses(counted)


def test_what_is_told_at_once() -> None:
    """What OpenAI's server writes."""
    details = {
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 2},
        "output_tokens_details": {"reasoning_tokens": 2},
    }
    counted = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7, **details}
    assert plain_usage_of_response(msgspec.Raw(json.dumps(counted).encode())) == Usage(3, 4, 2, 1, 2)
