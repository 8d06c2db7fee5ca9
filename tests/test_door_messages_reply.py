"""What a provider's steps become as Anthropic's content blocks: whole, streamed, interleaved, signed."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Answer, Delta, StreamBatch, ToolCall, Usage
from manallm_proxy.contract.attempts import AttemptRecord, NoProvider
from manallm_proxy.contract.errors import InvalidRequest, Overloaded, ProxyError, ShuttingDown
from manallm_proxy.contract.provider_errors import RateLimited, StreamInterrupted
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.carried import Carried, pack, unpack
from manallm_proxy.doors.messages.blocks import Blocks
from manallm_proxy.doors.messages.errors import error_body
from manallm_proxy.doors.messages.reply import MessagesReply
from manallm_proxy.doors.messages.request import Thinking
from manallm_proxy.openai.json_object import encode
from tests import anthropic_stream
from tests.cases import every
from tests.proxy import openai, proxy, settings
from tests.upstreams import DONE, Connection, Seen, chunk, completion, each, upstream

TARGET = Target("gpu", "m")
SHOWN = Thinking()
SIGNED = {"extra_content": {"google": {"thought_signature": "c2lnbmVk"}}}
CARRIED = Carried("gpu", "", extras={"c": SIGNED["extra_content"]})


def reply(thinking: Thinking = SHOWN) -> MessagesReply:
    return MessagesReply("req-1", Blocks(thinking))


def streamed(*deltas: Delta, usage: Usage | None = None, thinking: Thinking = SHOWN) -> bytes:
    """Each step in a batch of its own."""
    writes = reply(thinking)
    writes.start(TARGET)
    frames = b"".join([writes.events(StreamBatch(deltas=(delta,))) for delta in deltas])
    return frames + writes.end(usage)


def whole(*deltas: Delta, usage: Usage | None = None, thinking: Thinking = SHOWN) -> dict[str, Any]:
    """As if the steps were one."""
    writes = reply(thinking)
    for delta in deltas[:-1]:
        writes.blocks.add(delta)
    said: dict[str, Any] = json.loads(writes.whole(TARGET, Answer(choices=deltas[-1:], usage=usage)))
    return said


def both(*deltas: Delta, usage: Usage | None = None, thinking: Thinking = SHOWN) -> dict[str, Any]:
    """The message, once it has proved to be the same in both ways."""
    made = anthropic_stream.message(streamed(*deltas, usage=usage, thinking=thinking))
    other = whole(*deltas, usage=usage, thinking=thinking)
    assert re.fullmatch(r"msg_[0-9a-f]{24}", made["id"]) and other["id"] != made["id"]
    assert other | {"id": made["id"]} == made
    return made


def call(name: str, arguments: str = "", id_: str = "", index: int = 0, **more: Any) -> Delta:
    return Delta(tool_calls=(ToolCall(name, arguments, id_, index, **more),))


def test_text_and_thoughts_are_blocks_of_their_own() -> None:
    """In the order in which they came, with the tokens."""
    steps = (Delta(reasoning="let me"), Delta(reasoning=" see"), Delta("Hel"), Delta("lo"), Delta(finish="stop"))
    made = both(*steps, usage=Usage(prompt=12, completion=7, reasoning=4, cached=6, written=2))
    assert made["content"] == [
        {"type": "thinking", "thinking": "let me see", "signature": pack(Carried("gpu"))},
        {"type": "text", "text": "Hello"},
    ]
    assert (made["model"], made["stop_reason"], made["stop_sequence"]) == ("gpu/m", "end_turn", None)
    assert made["usage"] == {
        "input_tokens": 4,
        "cache_creation_input_tokens": 2,
        "cache_read_input_tokens": 6,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 4},
    }


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("content_filter", "refusal"),
        ("eos", "end_turn"),
        (None, "end_turn"),
    ],
)
def test_why_it_stopped(finish: str | None, reason: str) -> None:
    assert both(Delta("x"), Delta(finish=finish))["stop_reason"] == reason


def test_calls_end_a_turn_whatever_the_provider_says() -> None:
    """Ollama and others say "stop" after a call; a cut one is a cut one."""
    for finish, reason in (("tool_calls", "tool_use"), ("stop", "tool_use"), ("length", "max_tokens")):
        assert both(call("f", "{}", "c"), Delta(finish=finish))["stop_reason"] == reason
    assert both(Delta("x"), Delta(finish="tool_calls"))["stop_reason"] == "end_turn"


def test_a_refusal_and_a_picture_are_text() -> None:
    made = both(Delta(refusal="I will not"), Delta(finish="stop"))
    assert (made["content"], made["stop_reason"]) == ([{"type": "text", "text": "I will not"}], "refusal")
    assert both(Delta(images=("data:image/png;base64,AA==",)))["content"][0]["text"].startswith("![image](data:")


def test_nothing_is_a_message_too() -> None:
    assert both(Delta())["content"] == []
    assert anthropic_stream.types(streamed()) == ["message_start", "message_delta", "message_stop"]


def test_parts_of_calls_that_interleave_leave_one_call_after_the_other() -> None:
    """The first as it comes; what is complete makes room for the next, what is not keeps the others waiting."""
    steps = (
        call("add", "", "a", 0),
        call("", '{"x"', index=0),
        call("sub", '{"y"', "b", 1),
        call("", ": 1}", index=0),
        Delta("meanwhile"),
        call("", ": 2}", index=1),
        Delta(finish="tool_calls"),
    )
    assert both(*steps)["content"] == [
        {"type": "tool_use", "id": "a", "name": "add", "input": {"x": 1}},
        {"type": "tool_use", "id": "b", "name": "sub", "input": {"y": 2}},
        {"type": "text", "text": "meanwhile"},
    ]
    writes = reply()
    writes.start(TARGET)
    frames = [writes.events(StreamBatch(deltas=(step,))) for step in steps[:5]]
    kinds = [anthropic_stream.types(each) if each else [] for each in frames]
    start, delta, stop = (f"content_block_{word}" for word in ("start", "delta", "stop"))
    assert kinds == [["message_start", start], [delta], [], [delta, stop, start, delta], []]


def test_calls_that_are_all_numbered_0_stay_apart() -> None:
    """As some servers stream parallel calls; a part that repeats the name is none of its own."""
    made = both(call("f", '{"a": 1}', "c1"), call("f", '{"a": 2}', "c2"), Delta(finish="tool_calls"))
    assert [(block["id"], block["input"]) for block in made["content"]] == [("c1", {"a": 1}), ("c2", {"a": 2})]
    made = both(call("f", '{"a"', "c1"), call("f", ": 1}", "c2"), Delta(finish="tool_calls"))
    assert [(block["id"], block["input"]) for block in made["content"]] == [("c1", {"a": 1})]


def test_no_two_calls_have_one_id() -> None:
    """A server's slip; their results could not be told apart."""
    made = both(call("f", "{}", "c", 0), Delta("and"), Delta(finish="tool_calls"))
    assert made["content"][0]["id"] == "c"
    for calls in (whole, lambda *steps: anthropic_stream.message(streamed(*steps))):
        ids = [block["id"] for block in calls(call("f", "{}", "c", 0), call("g", "{}", "c", 1))["content"]]
        assert ids[0] == "c" and len(set(ids)) == 2 and all(ids)


@pytest.mark.parametrize(
    ("said", "finish", "told"),
    [
        ({"stop_reason": "###"}, "stop", ("stop_sequence", "###")),
        ({"matched_stop": "###"}, "stop", ("stop_sequence", "###")),
        ({"stop_reason": "</s>"}, "stop", ("end_turn", None)),
        ({"stop_reason": 2, "matched_stop": None}, "stop", ("end_turn", None)),
        ({"stop_reason": "###"}, "length", ("max_tokens", None)),
    ],
)
async def test_which_stop_sequence_ended_it(
    tmp_path: Path, said: dict[str, Any], finish: str, told: tuple[str, str | None]
) -> None:
    """vLLM and SGLang say it; only one of the request's own is one."""

    async def vllm(connection: Connection, seen: Seen) -> None:
        choice = {"index": 0, "finish_reason": finish, **said}
        if not seen.json["stream"]:
            await connection.reply({**completion(), "choices": [{**choice, "message": {"content": "Hi"}}]})
            return
        await connection.head()
        row = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        await connection.chunk(chunk("Hi"))
        await connection.chunk(b"data: " + encode({**row, "choices": [{**choice, "delta": {}}]}) + b"\n\n" + DONE)
        await connection.end()

    async with upstream(each(vllm)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        asked = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stop_sequences": ["###", "END"]}
        _, made, _ = await p.post("/v1/messages", {**asked, "stream": False})
        assert (made["stop_reason"], made["stop_sequence"]) == told
        async with p.client.post(p.url + "/v1/messages", json={**asked, "stream": True}) as response:
            made = anthropic_stream.message(await response.read())
        assert (made["stop_reason"], made["stop_sequence"]) == told


@pytest.mark.parametrize("text", ["", " ", "null", "{}"])
def test_no_input_is_an_empty_object(text: str) -> None:
    assert whole(call("f", text, "c"))["content"][0]["input"] == {}


def test_half_a_surrogate_pair_in_an_input_is_legal() -> None:
    """And U+FFFD for whom it is decoded; a stream hands the JSON text on."""
    half, twice = '{"a": "\\ud800"}', '{"a": 2}'
    assert whole(call("f", half, "c"))["content"][0]["input"] == {"a": "\ufffd"}
    data = streamed(call("f", half, "c1"), call("f", twice, "c2"), Delta(finish="tool_calls"))
    assert data.count(b"event: content_block_start") == 2


def test_an_input_that_cannot_be_read_is_kept() -> None:
    """The tool's own check refuses it, and the model learns of it."""
    for text in ('{"a": ', "[1]", '"x"'):
        assert whole(call("f", text, "c"))["content"][0]["input"] == {"unreadable_input": text}


@pytest.mark.parametrize("thought", [True, False])
def test_what_a_call_brings_back_is_a_signature(thought: bool) -> None:
    """On the thought before it, or on an empty one."""
    first = Delta(reasoning="hm") if thought else Delta("text")
    made = both(first, call("f", "{}", "c", extra=SIGNED), call("g", "{}", "d", 1), Delta(finish="tool_calls"))
    carrier = made["content"][-3]
    assert (carrier["type"], carrier["thinking"]) == ("thinking", "hm" if thought else "")
    assert unpack(carrier["signature"]) == CARRIED
    assert [block["type"] for block in made["content"][-2:]] == ["tool_use"] * 2


def test_a_signature_that_comes_late_is_carried_after_its_call() -> None:
    made = both(call("f", "{", "c"), call("", "}", extra=SIGNED), Delta(finish="tool_calls"))
    assert [block["type"] for block in made["content"]] == ["tool_use", "thinking"]
    assert unpack(made["content"][1]["signature"]) == CARRIED


def test_long_reasoning_is_packed_in_short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megabytes of it become what one call would have made, and are read again."""
    sizes: list[int] = []
    real = base64.urlsafe_b64encode

    def encode(data: bytes) -> bytes:
        sizes.append(len(data))
        return real(data)

    for reasoning in ("x" * 300_000, "\u00e9" * 299_999, "\U0001f600" * 262_145):
        long = Carried("g", reasoning, extras={"a": {"b": [1]}})
        monkeypatch.setattr(base64, "urlsafe_b64encode", encode)
        told = pack(long)
        monkeypatch.undo()
        assert msgspec.json.decode(base64.urlsafe_b64decode(told.removeprefix("manallm1.")), type=Carried) == long
        assert unpack(told) == long
        assert unpack(told[:-5] + "!") == Carried()
    assert max(sizes) <= 100_000


def test_thoughts_are_shown_as_the_client_wants() -> None:
    """Omitted: only what has to come back. Disabled: none at all."""
    steps = (Delta(reasoning="hm"), call("f", "{}", "c", extra=SIGNED))
    omitted = both(*steps, thinking=Thinking(shown=False))["content"]
    assert [(block["type"], block.get("thinking")) for block in omitted] == [("thinking", ""), ("tool_use", None)]
    disabled = both(*steps, thinking=Thinking(shown=False, signed=False))["content"]
    assert [block["type"] for block in disabled] == ["tool_use"]


def begun(steps: list[Delta]) -> list[Delta]:
    """`steps` with a name in the first part of each call, as providers hand them on."""
    seen: set[int] = set()
    made: list[Delta] = []
    for step in steps:
        calls = tuple(
            p if p.index in seen else evolve(p, name=f"f{p.index}", id=f"c{p.index}") for p in step.tool_calls
        )
        seen |= {part.index for part in calls}
        made.append(evolve(step, tool_calls=calls))
    return made


STEPS = st.lists(
    st.one_of(
        st.builds(Delta, content=st.text("ab"), reasoning=st.text("cd")),
        st.builds(lambda n: Delta(tool_calls=(ToolCall(f"f{n}", "", f"c{n}", n),)), st.integers(0, 2)),
        st.builds(
            lambda n, text: Delta(tool_calls=(ToolCall("", text, "", n),)),
            st.integers(0, 2),
            st.sampled_from(['{"a": "', "b", '}"', '"}', " ", "{}"]),
        ),
    ),
    max_size=12,
).map(begun)


@given(STEPS)
def test_blocks_never_interleave(steps: list[Delta]) -> None:
    """Whatever comes, in whichever order: each block is closed before the next, and text and thoughts are all there.

    Of a call's input only what follows a whole object may be missing.
    """
    rows = anthropic_stream.events(streamed(*steps))
    stack: list[int] = []
    for row in rows:
        if row["type"] == "content_block_start":
            assert not stack
            stack.append(row["index"])
        elif row["type"] == "content_block_delta":
            assert stack == [row["index"]]
        elif row["type"] == "content_block_stop":
            assert stack.pop() == row["index"]
    deltas = [row["delta"] for row in rows if row["type"] == "content_block_delta"]
    for kind in ("text", "thinking"):
        left = "".join(delta.get(kind, "") for delta in deltas)
        assert left == "".join(step.content if kind == "text" else step.reasoning for step in steps)
    inputs: dict[int, str] = {}
    for row in rows:
        if row["type"] == "content_block_delta":
            inputs[row["index"]] = inputs.get(row["index"], "") + row["delta"].get("partial_json", "")
    for start in (row for row in rows if row["type"] == "content_block_start"):
        if (block := start["content_block"])["type"] == "tool_use":
            parts = [part for step in steps for part in step.tool_calls if f"c{part.index}" == block["id"]]
            sent = "".join(part.arguments for part in parts)
            assert sent.startswith(left := inputs.get(start["index"], ""))
            assert left == sent or isinstance(json.loads(left), dict)


def broken(error: ProxyError, *, committed: bool = True) -> dict[str, Any]:
    writes = reply()
    if committed:
        writes.start(TARGET)
        writes.events(StreamBatch(deltas=(Delta("x"),)))
    [event] = anthropic_stream.events(writes.error(error))
    return event


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StreamInterrupted("gone"), "api_error"),
        (InvalidRequest("no"), "api_error"),
        (RateLimited("slow"), "overloaded_error"),
        (ShuttingDown("over"), "overloaded_error"),
    ],
)
def test_a_break_is_no_mistake_of_the_caller(error: ProxyError, kind: str) -> None:
    event = broken(error)
    assert (event["type"], event["error"]["type"], event["request_id"]) == ("error", kind, "req-1")


@every([(500, "api_error"), (499, "invalid_request_error"), (529, "overloaded_error"), (504, "timeout_error")])
def test_the_type_of_an_error_is_of_its_status(status: int, kind: str) -> None:
    error = InvalidRequest("no")
    error.status = status
    assert json.loads(error_body(error))["error"]["type"] == kind


def test_before_the_commit_an_event_says_what_the_status_would() -> None:
    """After an early heartbeat."""
    assert broken(InvalidRequest("no"), committed=False)["error"]["type"] == "invalid_request_error"
    assert broken(Overloaded("no"), committed=False)["error"]["type"] == "overloaded_error"
    nobody = NoProvider("mana/x", [AttemptRecord("gpu/m", "connect_error")], None)
    told = broken(nobody, committed=False)["error"]
    assert (told["type"], told["attempts"]) == ("api_error", [{"model": "gpu/m", "reason": "connect_error"}])
