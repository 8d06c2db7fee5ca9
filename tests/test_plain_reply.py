"""A whole answer that is a text and no more is recognised by its shape; any other one is read member by member."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Delta, ToolCall, Usage
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.doors.responses.answer import AnswerItems
from manallm_proxy.doors.responses.tool_names import Tool
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.openai import wire
from manallm_proxy.providers.openai.wire import OpenAIWire

BODY = b'{"model":"m","messages":[]}'
CALL = Call(Endpoint.CHAT, read_summary(BODY, ("messages", list)), BODY, "r", relays=False)
texts = st.sampled_from([None, "", "word", "\u00fc\ud83d", 3, [{"type": "text", "text": "a"}]])
lists: st.SearchStrategy[Any] = st.sampled_from([None, [], [{"function": {"name": "f"}, "id": "i"}], "x"])
errors: st.SearchStrategy[Any] = st.sampled_from([None, {}, {"message": "no"}, ""])
messages = st.fixed_dictionaries(
    {"content": st.just("word") | texts},
    optional={
        **dict.fromkeys(("reasoning_content", "reasoning", "refusal"), texts),
        **dict.fromkeys(("tool_calls", "images", "audio"), lists),
        "role": st.just("assistant"),
    },
)
choices = st.fixed_dictionaries(
    {"finish_reason": st.sampled_from(["stop", "stop", "length", "error", "tool_calls", None, ""])},
    optional={
        "message": messages | st.none(),
        "index": st.sampled_from([0, 1, None, "0"]),
        "text": texts,
        "logprobs": st.sampled_from([None, {}, {"content": []}]),
        "error": errors,
    },
)
answers = st.fixed_dictionaries(
    {"id": st.just("a")},
    optional={
        "choices": st.lists(choices, max_size=2) | st.none(),
        "usage": st.sampled_from([None, {}, {"prompt_tokens": 3, "completion_tokens": 4}, "x"]),
        "error": errors,
    },
)


def outcome(body: bytes) -> Any:
    try:
        return OpenAIWire().answer(CALL, Entry(Target("p", "m")), body)
    except ProviderError as error:
        return repr(error)


@given(answers, st.sampled_from(["", " ", "x"]))
def test_any_answer_is_read_the_same(answer: dict[str, Any], more: str) -> None:
    """The same deltas, the same usage, the same error."""
    body = f"{json.dumps(answer)}{more}".encode()
    found = outcome(body)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(wire, "plain_reply", lambda body: None)
        assert outcome(body) == found


def test_a_usual_answer_is_told_by_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenAI, vLLM and llama.cpp write it."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "word",
        "refusal": None,
        "annotations": [],
        "tool_calls": [],
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    body = json.dumps({"id": "a", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode()
    monkeypatch.setattr(wire, "reply_object", lambda body: pytest.fail("it was read member by member"))
    answer = OpenAIWire().answer(CALL, Entry(Target("p", "m")), body)
    assert answer.usage == Usage(3, 4)
    assert [(said.content, said.finish) for said in answer.choices] == [("word", "stop")]


deltas = st.builds(
    Delta,
    content=st.sampled_from(["", "word"]),
    reasoning=st.sampled_from(["", "", "", "thought"]),
    refusal=st.sampled_from(["", "", "", "no"]),
    finish=st.sampled_from([None, "stop", "length", "content_filter", "error"]),
    index=st.sampled_from([0, 0, 0, 1]),
    logprobs=st.sampled_from([None, None, None, {"content": []}]),
    images=st.sampled_from([(), (), ("data:image/png;base64,AA",)]),
    tool_calls=st.sampled_from([(), (), (ToolCall("f", "{}", "i"),)]),
)


@given(st.lists(deltas, max_size=2))
def test_a_text_becomes_a_responses_item_without_events(choices: list[Delta]) -> None:
    """The same items with the same ids, complete or not, as by the events that a stream of it has."""

    def items() -> AnswerItems:
        ids = iter(range(9))
        return AnswerItems(lambda kind: f"{kind}_{next(ids)}", Tool)

    quick, slow = items(), items()
    quick.take_whole(choices)
    for delta in choices[:1]:
        assert all(slow.take(delta))
    if not slow.failed:
        assert all(slow.end())
    assert quick.views() == slow.views()
    assert [item.stored() for item in quick.items] == [item.stored() for item in slow.items]
    assert (quick.finish, quick.failed, quick.incomplete) == (slow.finish, slow.failed, slow.incomplete)
