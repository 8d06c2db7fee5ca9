"""Requests and answers of many parts cost their number, not its square: nobody else is served meanwhile.

Bounds are of processor time, a tenth of what the square would take.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from manallm_proxy.contract.answers import Delta, StreamBatch, ToolCall
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.messages.blocks import Blocks
from manallm_proxy.doors.messages.reply import MessagesReply
from manallm_proxy.doors.ollama.chat import OllamaChatDoor
from manallm_proxy.doors.replay.forms import REPLAYS
from manallm_proxy.doors.responses.answer import AnswerItems
from manallm_proxy.doors.responses.tool_names import Tool
from manallm_proxy.openai.call_arguments import Arguments
from manallm_proxy.openai.json_object import DecodeErrors, decode

TARGET = Target("a", "b")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begun = time.process_time()
    yield
    assert time.process_time() - begun < seconds


def test_results_of_many_calls() -> None:
    """In any order, by id or by name."""
    calls = [{"id": f"c{n}", "function": {"name": f"f{n}", "arguments": {}}} for n in range(5000)]
    by_id = [{"role": "tool", "content": "x", "tool_call_id": f"c{n}"} for n in reversed(range(5000))]
    by_name = [{"role": "tool", "content": "x", "tool_name": f"f{n}"} for n in reversed(range(5000))]
    for results in (by_id, by_name):
        messages = [{"role": "assistant", "tool_calls": calls}, *results]
        body = json.dumps({"model": "a/b", "messages": messages}).encode()
        with within(1.2):
            call, _ = OllamaChatDoor().read(body, Client("1"))
        told = decode(call.body)["messages"][1:]
        assert [row["tool_call_id"] for row in told] == [f"c{n}" for n in reversed(range(5000))]


def test_an_answer_of_many_calls() -> None:
    """Each has an id of its own."""
    items = AnswerItems(lambda prefix: prefix, Tool, limit=12_000)
    with within(2):
        for n in range(12_000):
            for _ in items.take(Delta(tool_calls=(ToolCall("f", "{}", f"c{n % 6000}", n),))):
                pass
    assert len({item["call_id"] for item in items.views()}) == 12_000


def test_arguments_of_many_objects() -> None:
    """Each piece may be the end of all, and the next call waits for that."""
    reply = MessagesReply("1", Blocks(limit=100_000))
    reply.start(TARGET)

    def after(*parts: ToolCall) -> bool:
        """Whether the second call has begun."""
        return b'"name":"g"' in reply.events(StreamBatch(deltas=(Delta(tool_calls=parts),)))

    assert not after(ToolCall("f", '{"a":[0', "c0"), ToolCall("g", "", "c1", 1))
    with within(2):
        assert not any(after(ToolCall("", ',{"b":"cccccccccccc"}')) for _ in range(6000))
    assert after(ToolCall("", "]}"))


def test_a_kept_answer_of_many_words() -> None:
    """Chat and Ollama's chat: a stream becomes one object."""
    chunk = {"id": "x", "choices": [{"index": 0, "delta": {"content": "?"}, "finish_reason": None}]}
    line = {"message": {"content": "?"}, "done": False}
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "chat/completions": lambda row: f"data: {json.dumps(row)}\n\n",
        "api/chat": lambda row: f"{json.dumps(row)}\n",
    }
    text = [f"{n} {'and some more words ' * 12}" for n in range(15_000)]
    for door, row in ("chat/completions", chunk), ("api/chat", line):
        begun = rows[door](row).partition("?")
        ended = rows[door](row).replace("null", '"stop"').replace("false", "true").replace("?", "")
        stream = "".join([*(begun[0] + words + begun[2] for words in text), ended]).encode()
        with within(1):
            whole = REPLAYS[door].to_whole(stream, None)
        assert whole is not None
        told = decode(whole)
        message = told["choices"][0]["message"] if "choices" in told else told["message"]
        assert message["content"] == "".join(text)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_when_arguments_are_whole(size: int) -> None:
    """As soon as a decoder says so, however they are cut, and no longer once something follows."""
    for text in (
        '{"a": "}\\"{", "b": [{}, "\\\\"]} ',
        " {} \n",
        "{}{}",
        "{} x",
        "[]",
        '"{}"',
        "{a}",
        "",
        "12",
        '{"a":"\\',
        "}",
    ):
        arguments = Arguments()
        for at in range(0, len(text), size):
            arguments.pieces.append(text[at : at + size])
            try:
                whole = isinstance(decode(arguments.text), dict)
            except DecodeErrors:
                whole = False
            assert arguments.are_whole is whole, (text, arguments.text)
