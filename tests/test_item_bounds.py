"""What an answer is a list of is bounded in number, wherever it stands, in each dialect and through each door."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.answers import AnswerLimits, Delta, ResponseBatch, ToolCall
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.messages.blocks import Blocks
from manallm_proxy.doors.replay.merging import joined, merge
from manallm_proxy.openai.large import ANSWER_ELEMENTS, LARGE_PARTS, REQUEST_ELEMENTS, is_large
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.gemini.stream import GeminiTranslator
from manallm_proxy.providers.native.responses import ResponsesRelay
from manallm_proxy.providers.ollama.wire import OllamaTranslator
from manallm_proxy.providers.openai.stream import EventReader, EventRelay
from tests.proxy import everything, openai, proxy, settings
from tests.upstreams import DONE, Connection, Seen, completion, each, upstream

BODY = b'{"messages":[]}'
CALL = Call(Endpoint.CHAT, read_summary(BODY, ("messages", list)), BODY, "r")
TARGET = Target("p", "m")
LIMITS = AnswerLimits(items=5, calls=5)
STREAM: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
HI = {"messages": [{"role": "user", "content": "hi"}]}


def event(value: Any, end: bytes = b"\n\n") -> bytes:
    return b"data: " + json.dumps(value).encode() + end


def chunk(*choices: dict[str, Any]) -> bytes:
    return event({"choices": choices})


def many(number: int, kind: str) -> list[bytes]:
    """Events of so many."""
    match kind:
        case "choices in one":
            return [chunk(*[{"index": 0, "delta": {"content": "a"}}] * number)]
        case "choices that end":
            return [chunk({"index": n, "delta": {"content": "a"}, "finish_reason": "stop"}) for n in range(number)]
        case "images in one":
            return [chunk({"delta": {"content": "a" * 3000, "images": ["http://a/b"] * number}})]
        case "calls without a name":
            calls = [{"index": n, "function": {"arguments": ""}} for n in range(number)]
            return [chunk({"index": 0, "delta": {"tool_calls": [call]}}) for call in calls]
        case "calls in one":
            return [chunk({"delta": {"content": "a" * 3000, "tool_calls": [{}] * number}})]
        case "candidates":
            said = {"content": {"parts": [{"text": "a"}]}}
            return [event({"candidates": [{"index": n, **said}]}, b"\r\n\r\n") for n in range(number)]
        case "parts in one":
            return [event({"candidates": [{"content": {"parts": [{"text": "a"}] * (2 * number - 1)}}]}, b"\r\n\r\n")]
        case "calls of Ollama in one":
            calls = [{"function": {"name": "f", "arguments": {}}}] * number
            return [json.dumps({"message": {"tool_calls": calls}}).encode() + b"\n"]
    items = [{"type": "message", "content": [{"type": "output_text", "text": "a"}]}] * number
    begun = event({"type": "response.created", "response": {"id": "x", "output": []}})
    return [begun, *(event({"type": "response.output_item.done", "item": item}) for item in items)]


DIALECTS: dict[str, tuple[Callable[[], Any], str]] = {
    "choices in one": (lambda: EventReader(CALL, TARGET, LIMITS), "items"),
    "choices that end": (lambda: EventReader(CALL, TARGET, LIMITS), "items"),
    "images in one": (lambda: EventReader(CALL, TARGET, LIMITS), "items"),
    "calls without a name": (lambda: EventReader(CALL, TARGET, LIMITS), "calls"),
    "calls in one": (lambda: EventReader(CALL, TARGET, LIMITS), "calls"),
    "candidates": (lambda: GeminiTranslator(LIMITS), "items"),
    "parts in one": (lambda: GeminiTranslator(LIMITS), "items"),
    "calls of Ollama in one": (lambda: OllamaTranslator(Endpoint.CHAT, LIMITS), "calls"),
    "items of Responses": (lambda: ResponsesRelay(CALL, TARGET, LIMITS), "items"),
}


@pytest.mark.parametrize("kind", DIALECTS)
def test_a_stream(kind: str) -> None:
    """As many as allowed pass; one more is the provider's failure, in words that name the key."""
    make, key = DIALECTS[kind]
    for number in (5, 6):
        translator = make()
        errors = [batch.error for batch in map(translator.feed, many(number, kind)) if batch.error is not None]
        assert bool(errors) is (number == 6), number
        for error in errors[:1]:
            assert isinstance(error, BadResponse)
            assert f"(answers.{key})" in error.message


def test_a_relayed_stream() -> None:
    """Of which nothing is held but which choices have ended."""
    for number in (5, 6):
        relay = EventRelay(CALL, TARGET, LIMITS)
        errors = [batch.error for batch in map(relay.feed, many(number, "choices that end"))]
        assert any(errors) is (number == 6)


def test_items_of_a_native_response_are_told_once() -> None:
    """And not all of them again with each one."""
    relay = ResponsesRelay(CALL, TARGET)
    told = [relay.feed(data) for data in many(4, "items of Responses")]
    assert [len(batch.items) for batch in told if isinstance(batch, ResponseBatch)] == [0, 1, 1, 1, 1]


def test_blocks_that_wait() -> None:
    """Behind a call whose arguments have not ended."""
    blocks = Blocks(limit=5)
    blocks.add(Delta(tool_calls=(ToolCall("f", "{", "c", 0),)))
    for delta in (Delta("a"), Delta(reasoning="b"), Delta("a"), Delta(reasoning="b")):
        blocks.add(delta)
    for _ in range(2):
        with pytest.raises(BadResponse, match=r"answers\.items"):
            blocks.add(Delta("a"))


async def told(server: Any, path: str, folder: Path, **asked: Any) -> tuple[int, str]:
    async with upstream(each(server)) as odd:
        config = settings({"odd": openai(odd.url)}, answers={"items": 5, "calls": 1})
        async with proxy(config, folder) as p:
            async with p.client.post(p.url + path, json={"model": "odd/m", **asked}) as response:
                return response.status, (await everything(response)).decode()


@pytest.mark.parametrize("stream", [False, True])
async def test_before_the_commit_another_target_may_be_asked(tmp_path: Path, stream: bool) -> None:
    """So the client learns of it by the status."""

    async def much(connection: Connection, seen: Seen) -> None:
        if stream:
            await connection.head()
            await connection.chunk(many(6, "choices in one")[0])
            await connection.end()
        else:
            await connection.reply({**completion(), "choices": completion()["choices"] * 6})

    for path in ("/v1/messages", "/api/chat"):
        status, text = await told(much, path, tmp_path, max_tokens=9, stream=stream, **HI)
        assert status == 503
        assert "answers.items" in text


@pytest.mark.parametrize("path", ["/v1/responses"])
@pytest.mark.parametrize("together", [False, True])
async def test_after_the_commit_it_is_told_in_the_stream(tmp_path: Path, path: str, together: bool) -> None:
    """Whether the events come together or one by one; what was said before stays, and the answer is not complete."""
    steps = [chunk({"delta": {key: "a"}}) for _ in range(20) for key in ("content", "reasoning_content")]

    async def talk(connection: Connection, seen: Seen) -> None:
        await connection.head()
        for data in [b"".join(steps)] if together else steps:
            await connection.chunk(data)
        await connection.chunk(chunk({"delta": {}, "finish_reason": "stop"}) + DONE)
        await connection.end()

    status, text = await told(talk, path, tmp_path, input="hi", stream=True)
    assert status == 200
    assert "(answers.items)" in text and "response.failed" in text and "response.completed" not in text
    assert text.startswith("event: response.created")
    assert text.count("event: response.output_item.added") == 5 + 2 * 1 + 3


def test_steps_of_many_are_put_together_at_once() -> None:
    """What a kept stream becomes: each element is found by its index, not looked for among all before it."""
    whole: dict[str, Any] = {}
    rows = [{"index": n, "text": "a"} for n in range(20_000)]
    began = time.process_time()
    merge(whole, {"rows": rows, "odd": [1, {"index": [1]}, {"index": None}, {}]})
    for n in range(0, 20_000, 10):
        merge(whole, {"rows": [{"index": n, "text": "b"}]})
    assert time.process_time() - began < 5
    told = joined(whole)
    assert [row["text"] for row in told["rows"]] == ["ab" if n % 10 == 0 else "a" for n in range(20_000)]
    assert told["odd"] == [1, {"index": [1]}, {"index": None}, {}]


def test_many_objects_are_large_whatever_their_bytes() -> None:
    """Each becomes several of ours, so they are read beside the loop; numbers do not."""
    for elements in (REQUEST_ELEMENTS, ANSWER_ELEMENTS):
        assert is_large(b'{"choices":[%b]}' % b",".join([b"{}"] * LARGE_PARTS), elements)
        assert not is_large(b'{"choices":[%b]}' % b",".join([b"{}"] * (LARGE_PARTS // 2)), elements)
    assert not is_large(b'{"data":[%b]}' % b",".join([b"1"] * (ANSWER_ELEMENTS - 3)), ANSWER_ELEMENTS)


async def test_an_event_of_many_is_translated_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few its bytes are, and written there; a short one is not."""
    threads: set[int] = set()
    read = EventReader._take

    def watched(self: EventReader, *args: Any) -> None:
        threads.add(threading.get_ident())
        read(self, *args)

    monkeypatch.setattr(EventReader, "_take", watched)
    for number in (3, 600):
        threads.clear()
        calls = [{"index": n, "id": f"c{n}", "function": {"name": "f", "arguments": "{}"}} for n in range(number)]

        async def call(connection: Connection, seen: Seen, calls: list[Any] = calls) -> None:
            await connection.head()
            await connection.chunk(chunk({"index": 0, "delta": {"tool_calls": calls}, "finish_reason": "tool_calls"}))
            await connection.chunk(DONE)
            await connection.end()

        async with upstream(each(call)) as server, proxy(settings({"o": openai(server.url)}), tmp_path) as p:
            async with p.client.post(p.url + "/v1/messages", json={"model": "o/m", "max_tokens": 9, **STREAM}) as got:
                assert (await everything(got)).count(b'"type":"tool_use"') == number
        assert (threading.get_ident() in threads) is (number == 3)
