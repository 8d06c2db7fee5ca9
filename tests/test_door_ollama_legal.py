"""Whatever Ollama's clients may legally say, the answer is one that they can read: requests made by Hypothesis."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Delta, StreamBatch, ToolCall
from manallm_proxy.contract.door import Client, Door
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.doors.ollama.chat import OllamaChatDoor
from manallm_proxy.doors.ollama.embed import OllamaEmbedDoor
from manallm_proxy.doors.ollama.generate import OllamaGenerateDoor
from manallm_proxy.doors.ollama.messages import Conversation
from manallm_proxy.doors.ollama.reply import ChatReply
from manallm_proxy.providers.loopback import LoopbackProvider
from manallm_proxy.providers.ollama import request as ollama_request
from tests.ollama_lines import legal, lines_of
from tests.sdks import judged

ENTRY = Entry(Target("loop", "m"))
CLIENT = Client("req-1")

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.sampled_from(["weather", "add", "x"])
scalars = st.none() | st.booleans() | st.integers() | words
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2))
objects = st.dictionaries(words, values, max_size=3)
unread = (b"GIF8", b"BM")
"""Of pictures that Ollama does not read."""
pictures = st.binary(min_size=1, max_size=8).filter(lambda raw: not raw.startswith(unread))
images = st.lists(pictures.map(lambda raw: base64.b64encode(raw).decode()), max_size=2)
options = st.fixed_dictionaries(
    {},
    optional={
        "num_predict": st.integers(-2, 99),
        "temperature": st.floats(0, 2),
        "top_p": st.none() | st.floats(0, 1),
        "top_k": st.integers(1, 99),
        "seed": st.integers(0, 2**31),
        "stop": st.lists(words, max_size=2),
        "num_ctx": st.integers(1, 2**20),
        "repeat_penalty": st.floats(0, 2),
        "use_mmap": st.booleans(),
    },
)
settings_ = {
    "stream": st.booleans() | st.none(),
    "options": options,
    "format": st.sampled_from(["", "json", {"type": "object"}]),
    "think": st.sampled_from([True, False, "low", "medium", "high", "max"]),
    "keep_alive": st.sampled_from(["5m", 0, -1, 1.5]),
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(0, 20),
}


def said(role: str, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"role": st.just(role), "content": words}, optional={"images": images, **more})


@st.composite
def turns(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A conversation with tools: some calls have ids, results come in any order, with a name, an id, or neither."""
    messages: list[dict[str, Any]] = [draw(said("system"))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 3))):
        messages.append(draw(said("user")))
        spoken = draw(said("assistant", thinking=words))
        calls = draw(st.lists(st.fixed_dictionaries({"name": names}, optional={"arguments": objects}), max_size=3))
        rows: list[dict[str, Any]] = [{"function": call} for call in calls]
        ids = draw(st.booleans())
        if ids:
            rows = [{"id": f"call0000{n + 1}", **row} for n, row in enumerate(rows)]
        messages.append({**spoken, **({"tool_calls": rows} if rows else {})})
        for row in draw(st.permutations(rows)):
            named = draw(st.sampled_from(["tool_name", "name", "tool_call_id", None]))
            result: dict[str, Any] = {"role": "tool", "content": draw(words)}
            if named == "tool_call_id" and ids:
                result["tool_call_id"] = row["id"]
            elif named in ("tool_name", "name"):
                result[named] = row["function"]["name"]
            messages.append(result)
    return messages


tools = st.lists(
    st.fixed_dictionaries(
        {"function": st.fixed_dictionaries({"name": names}, optional={"parameters": objects, "description": words})},
        optional={"type": st.just("function")},
    ),
    max_size=2,
)
chats = st.fixed_dictionaries({}, optional={"messages": turns(), "tools": tools, **settings_})
generates = st.fixed_dictionaries(
    {}, optional={"prompt": words, "system": words, "suffix": words, "images": st.none(), **settings_}
)
embeds = st.fixed_dictionaries(
    {},
    optional={
        "input": words | st.lists(words.filter(bool), max_size=3),
        "truncate": st.booleans(),
        "dimensions": st.integers(1, 8),
    },
)


def answered(door: Door, asked: dict[str, Any]) -> tuple[Call, bytes]:
    """What the gateway does, in short, with the loopback provider."""

    async def play() -> tuple[Call, bytes]:
        reading = door.read(json.dumps({"model": "mana/test", **asked}).encode(), CLIENT)
        call, reply = reading if isinstance(reading, tuple) else await reading
        provider = LoopbackProvider("loop")
        if call.answer is not None:
            return call, reply.whole(ENTRY.target, call.answer)
        if not call.summary.stream:
            return call, reply.whole(ENTRY.target, await provider.complete(call, ENTRY))
        stream = await provider.stream(call, ENTRY)
        reply.start(ENTRY.target)
        out = b""
        batch = StreamBatch()
        while not batch.done:
            batch = await stream.next()
            out += reply.events(batch)
        return call, out + reply.end(stream.usage)

    return asyncio.run(play())


def is_legal(call: Call, body: bytes, part: str) -> None:
    if call.summary.stream:
        assert len(lines_of(body, part)) > 1
    else:
        assert b"\n" not in body
        legal(json.loads(body), part=part)


def test_an_id_is_claimed_within_its_turn() -> None:
    """Ids begin anew with each turn: what a result of the first names is free in the second."""
    calls = [{"id": f"call0000{n}", "function": {"name": "weather"}} for n in (1, 2, 3)]
    turns = [
        [
            said,
            {"role": "tool", "content": "", "tool_name": "weather"},
            {"role": "tool", "content": "", "tool_call_id": id_},
        ]
        for said, id_ in (
            ({"role": "assistant", "tool_calls": calls[1:]}, "call00003"),
            ({"role": "assistant", "tool_calls": calls[1:]}, "call00002"),
        )
    ]
    read = Conversation().read([row for turn in turns for row in turn])
    results = [row["tool_call_id"] for row in read if row["role"] == "tool"]
    made = [call["id"] for row in read for call in row.get("tool_calls", ())]
    assert results == [made[0], made[1], made[3], made[2]]


def test_a_result_that_names_nothing_takes_no_call_that_another_names() -> None:
    """In whatever order they come: the first would take the first call, and the last find its own taken."""
    names = ("add", "add", "weather")
    calls = [{"id": f"call0000{n}", "function": {"name": name}} for n, name in enumerate(names, 1)]
    named: list[dict[str, str]] = [{}, {"tool_name": "add"}, {"tool_call_id": "call00002"}]
    results = [{"role": "tool", "content": "", **each} for each in named]
    read = Conversation().read([{"role": "assistant", "tool_calls": calls}, *results])
    assert [row["tool_call_id"] for row in read[1:]] == ["call00003", "call00001", "call00002"]


@given(chats)
def test_any_chat(asked: dict[str, Any]) -> None:
    """Answered legally; each result has its call, and no two calls an id; another Ollama takes all of it."""
    call, body = answered(OllamaChatDoor(), asked)
    is_legal(call, body, "message")
    messages = json.loads(call.body)["messages"]
    calls = [row["id"] for message in messages for row in message.get("tool_calls", ())]
    assert len(set(calls)) == len(calls)
    results = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    assert sorted(results) == sorted(calls)
    if call.answer is None:
        sent = json.loads(ollama_request.build(call, ENTRY).body)
        assert len(sent["messages"]) == len(asked["messages"])


@given(generates)
def test_any_generate(asked: dict[str, Any]) -> None:
    call, body = answered(OllamaGenerateDoor(), asked)
    is_legal(call, body, "response")
    assert call.endpoint is (Endpoint.COMPLETIONS if asked.get("suffix") else Endpoint.CHAT)
    if call.answer is None:
        ollama_request.build(call, ENTRY)


@given(embeds)
def test_any_embed(asked: dict[str, Any]) -> None:
    call, body = answered(OllamaEmbedDoor(), asked)
    given_ = asked.get("input") or []
    assert len(json.loads(body)["embeddings"]) == (1 if isinstance(given_, str) else len(given_))
    if call.answer is None:
        ollama_request.build(call, ENTRY)


arguments = st.lists(st.sampled_from(['{"a"', ": ", "1}", "{}", "", "nonsense", "\n"]), max_size=4)
deltas = st.builds(
    Delta,
    content=words,
    reasoning=words,
    tool_calls=st.lists(
        st.builds(ToolCall, name=st.just("") | names, arguments=arguments.map("".join), index=st.integers(0, 1)),
        max_size=2,
    ).map(tuple),
    finish=st.sampled_from([None, None, None, "stop", "length", "tool_calls", "content_filter"]),
    index=st.sampled_from([0, 0, 0, 1]),
)


@given(st.lists(deltas, max_size=6))
def test_any_answer(steps: list[Delta]) -> None:
    """Whatever a provider says, in whatever parts: lines that clients can read, the last one ``done`` or an error."""
    reply = ChatReply("mana/test")
    reply.start(ENTRY.target)
    body = b"".join(reply.events(StreamBatch(deltas=(step,), has_content=step.has_content)) for step in steps)
    last = reply.end(None)
    spoken = "".join(json.loads(line)["message"]["content"] for line in body.decode().splitlines())
    assert spoken == "".join(step.content for step in steps if not step.index)
    if last.startswith(b'{"error"'):
        assert any(step.tool_calls for step in steps)
        body += reply.heartbeat() + last
        assert [*json.loads(body.decode().splitlines()[-1])] == ["error"]
    else:
        lines_of(body + last)


def test_ollamas_own_types_read_any_answer() -> None:
    """Of ollama-python, on what all routes answer, whole and streamed."""
    told: dict[str, list[Any]] = {"chat": [], "generate": [], "embed": []}

    @given(chats, generates, embeds)
    def ask(chat: dict[str, Any], generate: dict[str, Any], embed: dict[str, Any]) -> None:
        doors: list[tuple[str, Door, dict[str, Any]]] = [
            ("chat", OllamaChatDoor(), chat),
            ("generate", OllamaGenerateDoor(), generate),
            ("embed", OllamaEmbedDoor(), embed),
        ]
        for route, door, asked in doors:
            told[route] += [json.loads(line) for line in answered(door, asked)[1].splitlines()]

    ask()
    reply = ChatReply("mana/test")
    call = ToolCall("add", '{"x":1}', "c1")
    deltas = (
        Delta(reasoning="Hm."),
        Delta("Hi"),
        Delta(images=("data:image/png;base64,aGk=",)),
        Delta(tool_calls=(call,)),
    )
    reply.start(ENTRY.target)
    body = b"".join(reply.events(StreamBatch(deltas=(delta,))) for delta in deltas) + reply.end(None)
    told["chat"] += [json.loads(line) for line in body.splitlines()]
    assert any(row["message"].get("tool_calls") for row in told["chat"])
    assert judged("ollama", "ollama_types.py", told) == []
