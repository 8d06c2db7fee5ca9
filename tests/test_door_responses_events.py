"""What a client of the Responses door gets: items and events for everything that a provider may say."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import CallArguments, Delta, StreamBatch, ToolCall, Usage
from manallm_proxy.contract.attempts import AttemptRecord, NoProvider
from manallm_proxy.contract.provider_errors import StreamInterrupted
from manallm_proxy.doors.carried import unpack
from manallm_proxy.doors.replay.forms import REPLAYS
from manallm_proxy.doors.responses.stored_view import Page, input_view, response_view
from manallm_proxy.openai.json_object import encode
from manallm_proxy.providers.openai.deltas import deltas_of, whole_deltas
from manallm_proxy.providers.openai.reply import plain_reply
from tests.responses import FIELDS, FUNCTION, TARGET, Exchanged, Opened, chat_of, checked, parsed
from tests.upstreams import completion

SEALED = {"include": ["reasoning.encrypted_content"]}
SIGNED = {"google": {"thought_signature": "c2ln"}}
SIGNATURE: dict[str, Any] = {"extra_content": SIGNED}
STOP = Delta(finish="stop")
PATCH = {"type": "custom", "name": "apply_patch"}
AGENTS = {
    "type": "namespace",
    "name": "agents",
    "tools": [{**FUNCTION, "name": "spawn"}, {"type": "custom", "name": "tell"}],
}


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def output(events: list[dict[str, Any]]) -> Any:
    return events[-1]["response"]["output"]


async def both(*deltas: Delta, **body: Any) -> list[Any]:
    """The output of a whole answer of one delta, and of a stream of them."""
    opened = Opened()
    streamed = output((await opened.ask(**body)).stream(*deltas))
    whole = (await opened.ask(**body)).whole(*deltas)["output"] if len(deltas) == 1 else streamed
    return [streamed, whole]


async def test_the_complete_order_of_a_text() -> None:
    """Each event, in its place, with usage at the end."""
    events = (await Opened().ask()).stream(
        Delta(content="Hel"), Delta(content="lo"), STOP, usage=Usage(7, 5, reasoning=2, cached=3, written=1)
    )
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert events[4]["logprobs"] == []
    assert events[3]["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    response = events[-1]["response"]
    assert response["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 1},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 12,
    }
    assert events[0]["response"]["usage"] is None
    assert (response["model"], response["status"], response["output"][0]["role"]) == ("p/m", "completed", "assistant")
    assert response["completed_at"] is not None and events[0]["response"]["completed_at"] is None


CITED: dict[str, Any] = {"type": "url_citation", "start_index": 0, "end_index": 2, "url": "https://x.org", "title": "X"}
CITATION: dict[str, Any] = {"type": "url_citation", "url_citation": {key: CITED[key] for key in CITED if key != "type"}}


@pytest.mark.parametrize(
    "last", [Delta(citations=(CITED, CITED), finish="stop"), Delta("lo", citations=(CITED, CITED))]
)
async def test_pages_that_a_text_cites(last: Delta) -> None:
    """As annotations: in events of their own, in the item, and in the stream of a cached answer."""
    events = (await Opened().ask()).stream(Delta("Hel"), last)
    told = [event for event in events if event["type"] == "response.output_text.annotation.added"]
    assert [(event["annotation"], event["annotation_index"], event["content_index"]) for event in told] == [
        (CITED, 0, 0),
        (CITED, 1, 0),
    ]
    [item] = output(events)
    assert item["content"][0]["annotations"] == [CITED, CITED]
    response = encode(events[-1]["response"])
    again = checked(REPLAYS["responses"].to_stream(response, True) or b"")
    assert (kinds(again).count("output_text.annotation.added"), output(again)) == (2, [item])
    [[whole], _] = await both(Delta("Hello", citations=(CITED,), finish="stop"))
    assert whole["content"][0]["annotations"] == [CITED]


async def test_a_citation_alone_is_of_an_empty_text() -> None:
    for before in ((), (Delta(refusal="No."),)):
        [item] = output((await Opened().ask()).stream(*before, Delta(citations=(CITED,)), STOP))
        assert item["content"][-1] == {"type": "output_text", "text": "", "annotations": [CITED], "logprobs": []}


@pytest.mark.parametrize("odd", [None, {}, "x", [None], [{"url_citation": {"url": 3}}], [{"type": "url_citation"}]])
def test_annotations_as_servers_write_them(odd: Any) -> None:
    """OpenRouter adds the page's own text; what has no URL is none."""
    inner = {**CITATION["url_citation"], "content": "long"}
    message = {"content": "Hello", "annotations": [{"type": "url_citation", "url_citation": inner}]}
    assert whole_deltas([{"message": message}])[0].citations == (CITED,)
    assert deltas_of([{"delta": message}])[0].citations == (CITED,)
    bare = {"url_citation": {"url": "https://x.org", "start_index": None}}
    assert deltas_of([{"delta": {"annotations": [bare]}}])[0].citations == (
        {**CITED, "start_index": 0, "end_index": 0, "title": ""},
    )
    assert deltas_of([{"delta": {"annotations": odd}}])[0].citations == ()
    body = completion()
    body["choices"][0]["message"]["annotations"] = []
    assert plain_reply(encode(body)) is not None
    body["choices"][0]["message"]["annotations"] = [CITATION]
    assert plain_reply(encode(body)) is None, "which is read in a shorter way"


async def test_the_response_repeats_what_was_asked() -> None:
    """As it came."""
    asked: dict[str, Any] = {
        "instructions": "be brief",
        "tools": [FUNCTION, {"type": "web_search"}],
        "tool_choice": "auto",
        "metadata": {"a": "b"},
        "reasoning": {"effort": "low"},
        "temperature": 0.5,
        "store": False,
        "parallel_tool_calls": False,
        "max_output_tokens": 9,
        "text": {"format": {"type": "json_object"}},
    }
    response = (await Opened().ask(**asked)).whole(Delta(content="x", finish="stop"))
    asked["reasoning"] = {"effort": "low", "summary": None}
    assert {key: response[key] for key in asked} == asked
    assert set(response) == FIELDS


async def test_what_is_null_was_not_asked() -> None:
    """As some clients write what they leave out; what stands behind it is repeated."""
    nothing = ("tools", "metadata", "reasoning", "text", "temperature", "tool_choice", "truncation")
    asked = {**dict.fromkeys(nothing), "previous_response_id": None, "instructions": "be brief", "user": "u"}
    response = (await Opened().ask(**asked)).whole(Delta(content="x", finish="stop"))
    bare = (await Opened().ask()).whole(Delta(content="x", finish="stop"))
    assert (response["instructions"], response["user"]) == ("be brief", "u")
    assert {key: response[key] for key in nothing} == {key: bare[key] for key in nothing}
    assert (response["status"], response["incomplete_details"]) == ("completed", None)


async def test_reasoning_is_a_summary_before_the_text() -> None:
    """An item of its own, with all events of one."""
    events = (await Opened().ask()).stream(Delta(reasoning="I "), Delta(reasoning="think."), Delta(content="Yes"), STOP)
    assert kinds(events)[2:9] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    thought, said = output(events)
    assert thought["summary"] == [{"type": "summary_text", "text": "I think."}]
    assert "encrypted_content" not in thought
    assert said["content"][0]["text"] == "Yes"


async def test_reasoning_is_carried_where_it_is_asked_for() -> None:
    """And goes back to the provider with the next turn, whatever is stored."""
    deltas = (Delta(reasoning="I think."), Delta(content="Yes"), STOP)
    items = output((await Opened().ask(**SEALED, store=False)).stream(*deltas))
    assert unpack(items[0]["encrypted_content"]).reasoning == "I think."
    chat = await chat_of("p", input=[*items, {"role": "user", "content": "more"}])
    assert chat["messages"][0] == {"role": "assistant", "content": "Yes", "reasoning_content": "I think."}


@pytest.mark.parametrize("reasoning", ["", "I think."])
@pytest.mark.parametrize("store", [True, False])
async def test_a_signature_is_carried_by_one_reasoning_item(reasoning: str, store: bool) -> None:
    """Of a call that Gemini signed, with or without a word of reasoning; it returns beside the call."""
    call = ToolCall("add", '{"a":1}', "c1", 0, SIGNATURE)
    for items in await both(
        Delta(reasoning=reasoning, tool_calls=(call, ToolCall("add", "{}", "c2", 1)), finish="tool_calls"),
        tools=[FUNCTION],
        store=store,
        **SEALED,
    ):
        assert [item["type"] for item in items] == ["reasoning", "function_call", "function_call"]
        assert unpack(items[0]["encrypted_content"]).extras == {"c1": SIGNED}
        assert "extra_content" not in items[1]
        message = (await chat_of("p", input=items))["messages"][0]
        assert message["tool_calls"][0]["extra_content"] == SIGNED
        assert "extra_content" not in message["tool_calls"][1]
        assert message.get("reasoning_content", "") == reasoning


async def test_nothing_is_carried_unasked() -> None:
    """Then a signed call is a call, and only the proxy's own memory keeps its signature."""
    opened = Opened()
    door = await opened.ask(tools=[FUNCTION])
    response = door.whole(Delta(tool_calls=(ToolCall("add", "{}", "c1", 0, SIGNATURE),), finish="tool_calls"))
    assert [item["type"] for item in response["output"]] == ["function_call"]
    assert "extra_content" not in response["output"][0]
    result = {"type": "function_call_output", "call_id": "c1", "output": "2"}
    more = await opened.ask(previous_response_id=response["id"], input=[result])
    assert more.at("p")["messages"][1]["tool_calls"][0]["extra_content"] == SIGNED
    assert "extra_content" not in more.at("q")["messages"][1]["tool_calls"][0]


async def test_reasoning_is_kept_unasked() -> None:
    """It returns to its provider with the next turn, by either reference; the client sees none of it."""
    opened = Opened()
    door = await opened.ask(tools=[FUNCTION])
    thought = Delta(reasoning="I think.", reasoning_key="reasoning", content="so", finish="stop")
    response = door.whole(thought)
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    assert "encrypted_content" not in response["output"][0]
    kept = await opened.store.response(None, response["id"])
    assert kept is not None
    assert response_view(kept) == response
    references = [{"type": "item_reference", "id": item["id"]} for item in response["output"]]
    user = {"role": "user", "content": "more"}
    for more in ({"previous_response_id": response["id"], "input": [user]}, {"input": [*references, user]}):
        again = await opened.ask(**more)
        said = next(row for row in again.at("p")["messages"] if row["role"] == "assistant")
        assert said == {"role": "assistant", "content": "so", "reasoning": "I think."}
        assert "I think." not in json.dumps(again.at("q"))
        third = await opened.ask(previous_response_id=again.whole(Delta(content="x", finish="stop"))["id"])
        assert "I think." in json.dumps(third.at("p"))
        later = await opened.store.response(None, third.whole(Delta(content="y", finish="stop"))["id"])
        assert later is not None
        assert "manallm" not in json.dumps(input_view(later, Page(limit=100)))


async def test_calls_interleave() -> None:
    """Parts find their call by its index; each is closed once, at the end."""
    events = (await Opened().ask(tools=[FUNCTION])).stream(
        Delta(content="I add."),
        Delta(tool_calls=(ToolCall("add", "", "c1", 0), ToolCall("add", '{"b":', "c2", 1))),
        Delta(tool_calls=(ToolCall("", '{"a":', index=0),)),
        Delta(tool_calls=(ToolCall("", "2}", index=1), ToolCall("", "1}", index=0))),
        Delta(finish="tool_calls"),
    )
    text, first, second = output(events)
    assert text["content"][0]["text"] == "I add."
    assert (first["call_id"], first["arguments"], first["status"]) == ("c1", '{"a":1}', "completed")
    assert (second["call_id"], second["arguments"]) == ("c2", '{"b":2}')
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(event["name"], event["arguments"]) for event in done] == [("add", '{"a":1}'), ("add", '{"b":2}')]


async def test_calls_of_servers_that_do_not_count() -> None:
    """All whole calls under one index are calls of their own; a name that is repeated with each part begins none."""
    two = (ToolCall("add", '{"a":1}', "c1", 0), ToolCall("add", '{"a":2}', "c2", 0))
    for items in await both(Delta(tool_calls=two, finish="tool_calls"), tools=[FUNCTION]):
        assert [item["arguments"] for item in items] == ['{"a":1}', '{"a":2}']
    parts = (ToolCall("add", '{"a":', "c1", 0), ToolCall("add", "1}", "c2", 0))
    for items in await both(Delta(tool_calls=parts, finish="tool_calls"), tools=[FUNCTION]):
        assert [item["arguments"] for item in items] == ['{"a":1}']


async def test_long_arguments_under_a_name_that_is_repeated() -> None:
    """Each part might begin another call; what came before is not put together for each of them."""
    door = await Opened().ask(tools=[FUNCTION])
    steps = [Delta(tool_calls=(ToolCall("add", "x" * 20, f"c{n}"),)) for n in range(20_000)]
    begun = time.process_time()
    door.stream_bytes(*steps)
    assert time.process_time() - begun < 4  # half a second, and ten if it were


async def test_no_arguments_are_an_empty_object() -> None:
    """Clients read them as JSON, and what was streamed is what was done."""
    for items in await both(Delta(tool_calls=(ToolCall("add", "", "c1"),), finish="tool_calls"), tools=[FUNCTION]):
        assert (items[0]["arguments"], items[0]["status"]) == ("{}", "completed")
    events = (await Opened().ask(tools=[FUNCTION])).stream(Delta(tool_calls=(ToolCall("add", "", "c1"),)), STOP)
    said = "".join(event["delta"] for event in events if event["type"].endswith("arguments.delta"))
    assert said == "{}" == events[-3]["arguments"]
    for items in await both(Delta(tool_calls=(ToolCall("add", "", "c1"),), finish="length"), tools=[FUNCTION]):
        assert (items[0]["arguments"], items[0]["status"]) == ("", "incomplete")


async def test_half_a_surrogate_pair_in_arguments_is_legal() -> None:
    """Two calls that are both numbered 0 stay apart, and a custom tool gets its text."""
    half = '{"input": "\\ud800"}'
    deltas = (Delta(tool_calls=(ToolCall("c", half, "c1"),)), Delta(tool_calls=(ToolCall("c", half, "c2"),)), STOP)
    for items in await both(*deltas, tools=[{"type": "custom", "name": "c"}]):
        assert [item["input"] for item in items] == ["\ufffd"] * 2


async def test_made_up_ids_are_unique() -> None:
    """Also where a server uses one twice."""
    calls = (ToolCall("add", "{}", "c1", 0), ToolCall("add", "{}", "c1", 1), ToolCall("add", "{}", "", 2))
    for items in await both(Delta(tool_calls=calls, finish="tool_calls"), tools=[FUNCTION]):
        ids = [item["call_id"] for item in items]
        assert ids[0] == "c1" and len(set(ids)) == 3 and all(ids)


async def test_names_come_back_as_the_client_knows_them() -> None:
    """Namespaces apart from names, custom tools with their input."""
    calls = (
        ToolCall("agents__spawn", "{}", "c1", 0),
        ToolCall("apply_patch", '{"input":"a"}', "c2", 1),
        ToolCall("agents__tell", '{"input":"b"}', "c3", 2),
        ToolCall("spawn", "{}", "c4", 3),
        ToolCall("unknown", "{}", "c5", 4),
    )
    for items in await both(Delta(tool_calls=calls, finish="tool_calls"), tools=[PATCH, AGENTS]):
        rows = [(item["type"], item.get("namespace"), item["name"], item.get("input")) for item in items]
        assert rows == [
            ("function_call", "agents", "spawn", None),
            ("custom_tool_call", None, "apply_patch", "a"),
            ("custom_tool_call", "agents", "tell", "b"),
            ("function_call", "agents", "spawn", None),
            ("function_call", None, "unknown", None),
        ]


async def test_a_custom_tool_in_a_stream() -> None:
    """Its input is sent once its arguments are complete, whether these were read or only recognised by their bytes."""
    rest = 'ut":"x\\ny"}'
    for part in (Delta(tool_calls=(ToolCall("", rest),)), CallArguments([encode(rest)[1:-1]])):
        events = (await Opened().ask(tools=[PATCH])).stream(
            Delta(tool_calls=(ToolCall("apply_patch", '{"inp', "c1", 0),)),
            part,
            Delta(finish="tool_calls"),
        )
        assert kinds(events)[2:6] == [
            "output_item.added",
            "custom_tool_call_input.delta",
            "custom_tool_call_input.done",
            "output_item.done",
        ]
        assert output(events)[0]["input"] == events[3]["delta"] == events[4]["input"] == "x\ny"


async def test_a_refusal_is_a_part_of_its_own() -> None:
    """After what was said before it."""
    events = (await Opened().ask()).stream(Delta(content="Well, "), Delta(refusal="no"), Delta(refusal="!"), STOP)
    assert [part["type"] for part in output(events)[0]["content"]] == ["output_text", "refusal"]
    assert output(events)[0]["content"][1]["refusal"] == "no!"
    deltas = [event for event in events if event["type"] == "response.refusal.delta"]
    assert {event["content_index"] for event in deltas} == {1}


async def test_logprobs() -> None:
    """With every delta, and all of them in the end."""
    token = {"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "Hi", "logprob": -0.5}]}
    events = (await Opened().ask(top_logprobs=1)).stream(
        Delta(content="Hi", logprobs={"content": [token]}), Delta(finish="stop", logprobs={"content": []})
    )
    told = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}
    assert output(events)[0]["content"][0]["logprobs"] == events[4]["logprobs"] == [{**told, "top_logprobs": [told]}]


@pytest.mark.parametrize("told", [5, [5], {"content": 5}, {"content": [5, {}, {"token": 5, "top_logprobs": 5}]}])
async def test_odd_logprobs_break_nothing(told: Any) -> None:
    """What a provider writes there is never worth an answer."""
    for [item] in await both(Delta(content="Hi", logprobs=told, finish="stop")):
        assert item["content"][0]["text"] == "Hi"


async def test_a_logprob_that_is_no_number() -> None:
    row = {"token": "Hi", "logprob": "x", "bytes": 5, "top_logprobs": [{"token": "Hi", "logprob": None}, 5]}
    for [item] in await both(Delta(content="Hi", logprobs={"content": [row]}, finish="stop")):
        [token] = item["content"][0]["logprobs"]
        assert [each["logprob"] for each in (token, *token["top_logprobs"])] == [0.0, 0.0]


async def test_a_picture_that_the_model_made() -> None:
    """It is an item of its own, and goes back as what the assistant showed."""
    for items in await both(Delta(images=("data:image/webp;base64,aGk=",), finish="stop")):
        assert items[0]["type"] == "image_generation_call"
        assert (items[0]["result"], items[0]["output_format"]) == ("aGk=", "webp")
        shown = (await chat_of(input=items))["messages"][0]["images"]
        assert shown == [{"type": "image_url", "image_url": {"url": "data:image/webp;base64,aGk="}}]


async def test_a_picture_by_its_address() -> None:
    """The whole address, commas included, and no format made up of a part of it; the next turn has it again."""
    url = "https://x/a,b/y.png;v=1"
    for items in await both(Delta(images=(url,), finish="stop")):
        assert items[0]["type"] == "image_generation_call"
        assert items[0]["result"] == url and "output_format" not in items[0]
        assert (await chat_of(input=items))["messages"][0]["images"] == [
            {"type": "image_url", "image_url": {"url": url}}
        ]


async def test_an_empty_answer_is_an_empty_message() -> None:
    """So that no client waits for one."""
    events = (await Opened().ask()).stream(STOP)
    assert output(events)[0]["content"][0]["text"] == ""
    assert (await Opened().ask()).whole(STOP)["output"][0]["content"][0]["text"] == ""


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_answer_that_was_cut(finish: str, reason: str) -> None:
    """``response.incomplete``, and so is the item that was cut; those before it are not."""
    events = (await Opened().ask()).stream(Delta(reasoning="I think."), Delta(content="Hel"), Delta(finish=finish))
    whole = (await Opened().ask()).whole(Delta(reasoning="I think.", content="Hel", finish=finish))
    assert kinds(events)[-1] == "incomplete"
    for response in (events[-1]["response"], whole):
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": reason})
        assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
        assert response["completed_at"] is None
    for items in await both(Delta(tool_calls=(ToolCall("add", '{"a', "c1", 0),), finish=finish), tools=[FUNCTION]):
        assert items[0]["status"] == "incomplete"


async def test_a_provider_that_gives_up() -> None:
    """By its finish reason: the response has failed, with what was said."""
    events = (await Opened().ask()).stream_bytes(Delta(content="Hel"), Delta(finish="error"))
    response = parsed(events)[-2]["response"]
    whole = (await Opened().ask()).whole(Delta(content="Hel", finish="error"))
    for each in (response, whole):
        assert (each["status"], each["output"][0]["content"][0]["text"]) == ("failed", "Hel")
        assert each["error"]["message"]


async def test_a_stream_that_breaks() -> None:
    """Two events, the same words in all places; text before it is kept, and nothing says that it was done."""
    door = await Opened().ask()
    door.reply.start(TARGET)
    data = door.reply.events(StreamBatch(deltas=(Delta(content="Hel"),)))
    events = parsed(data + door.reply.error(StreamInterrupted("it broke")))
    assert kinds(events)[-3:] == ["output_text.delta", "failed", "error"]
    response, error = events[-2]["response"], events[-1]
    assert set(response) == FIELDS
    assert response["id"] == events[0]["response"]["id"]
    assert (response["status"], response["output"][0]["content"][0]["text"]) == ("failed", "Hel")
    assert response["output"][0]["status"] == "incomplete"
    told = {"code": "stream_interrupted", "message": "it broke"}
    assert response["error"] == told
    assert {key: error[key] for key in told} == {key: error["error"][key] for key in told} == told
    assert error["param"] is None and error["error"]["type"]


async def test_an_error_after_an_early_heartbeat() -> None:
    """The heartbeat begins the stream, and nobody answers: the response failed."""
    door = await Opened().ask(model="mana/x")
    data = door.reply.heartbeat() + door.reply.heartbeat()
    data += door.reply.error(NoProvider("mana/x", [AttemptRecord("a/b", "unhealthy")], 1.0))
    events = parsed(data)
    assert kinds(events) == ["created", "in_progress", "in_progress", "failed", "error"]
    assert events[0]["response"]["model"] == "mana/x"
    assert "a/b (unhealthy)" in events[-1]["message"]


async def test_a_heartbeat_is_an_event_between_two_others() -> None:
    """``response.in_progress`` with the same response: codex gives up on comments."""
    door = await Opened().ask()
    door.reply.start(TARGET)
    data = door.reply.events(StreamBatch(deltas=(Delta(content="Hel"),))) + door.reply.heartbeat()
    data += door.reply.events(StreamBatch(deltas=(Delta(content="lo", finish="stop"),))) + door.reply.end(None)
    events = checked(data)
    assert kinds(events).count("in_progress") == 2
    responses = [event["response"] for event in events if event["type"] == "response.in_progress"]
    assert responses[0] == responses[1]
    assert output(events)[0]["content"][0]["text"] == "Hello"


async def test_only_the_first_choice_counts() -> None:
    """There is room for one."""
    events = (await Opened().ask()).stream(Delta(content="a"), Delta(content="b", index=1), STOP)
    assert output(events)[0]["content"][0]["text"] == "a"


WORDS = st.text(max_size=8)
PARTS = st.lists(
    st.one_of(
        st.builds(lambda words: Delta(content=words), WORDS),
        st.builds(lambda words: Delta(reasoning=words), WORDS),
        st.builds(lambda words: Delta(refusal=words), WORDS),
        st.builds(
            lambda name, arguments, id_, index, extra: Delta(
                tool_calls=(ToolCall(name, arguments, id_, index, SIGNATURE if extra else {}),)
            ),
            st.sampled_from(["", "add", "apply_patch", "agents__spawn", "other"]),
            st.sampled_from(["", "{}", '{"a":', "1}"]),
            st.sampled_from(["", "c1", "c2"]),
            st.integers(0, 2),
            st.booleans(),
        ),
        st.builds(lambda: Delta(images=("data:image/png;base64,aGk=",))),
    ),
    max_size=12,
)


@given(PARTS, st.sampled_from(["stop", "length", "content_filter", "tool_calls", None]), st.booleans())
async def test_whatever_comes_is_a_legal_stream(deltas: list[Delta], finish: str | None, sealed: bool) -> None:
    """In any order: legal events, nothing lost, and what came out may go in again."""
    opened = Opened()
    door: Exchanged = await opened.ask(tools=[FUNCTION, PATCH, AGENTS], **(SEALED if sealed else {}))
    items = output(door.stream(*deltas, Delta(finish=finish)))
    texts = [part.get("text", "") for item in items for part in item.get("content", ())]
    assert "".join(texts) == "".join(delta.content for delta in deltas)
    thoughts = [part["text"] for item in items for part in item.get("summary", ())]
    assert "".join(thoughts) == "".join(delta.reasoning for delta in deltas)
    user = {"role": "user", "content": "and now?"}
    by_value = await opened.ask(input=[*items, user], tools=[PATCH, AGENTS])
    by_name = await opened.ask(
        input=[*({"type": "item_reference", "id": item["id"]} for item in items), user], tools=[PATCH, AGENTS]
    )
    assert by_name.chat["messages"][-1] == by_value.chat["messages"][-1] == user
    assert len(by_name.chat["messages"]) == len(by_value.chat["messages"])
    json.dumps(by_name.chat)
