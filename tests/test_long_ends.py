"""Long events and long ends of streams are written in short calls, in a thread, and are the same as in one."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Delta, StreamBatch, Thoughts, ToolCall, Usage, Words
from manallm_proxy.contract.door import Reply, TakesLong
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.messages import reply as messages
from manallm_proxy.doors.messages.blocks import Blocks
from manallm_proxy.doors.messages.reply import MessagesReply
from manallm_proxy.doors.ollama import reply as ollama
from manallm_proxy.doors.ollama.reply import ChatReply as OllamaReply
from manallm_proxy.doors.openai_chat import ChatReply
from manallm_proxy.doors.responses import reply as responses
from manallm_proxy.doors.responses.answer import AnswerItems
from manallm_proxy.doors.responses.reply import ResponsesReply
from manallm_proxy.doors.responses.shell import Shell
from manallm_proxy.doors.responses.tool_names import Tool
from manallm_proxy.gateway.client_stream import ClientStream
from manallm_proxy.openai import joined, json_object, large, sliced_writer
from manallm_proxy.openai.request import read_summary
from tests.examples import examples

TARGET = Target("gpu", "m")
DOORS: dict[str, Callable[[], Any]] = {
    "chat": lambda: ChatReply(read_summary(b'{"messages":[]}', ("messages", list))),
    "messages": lambda: MessagesReply("r", Blocks()),
    "ollama": lambda: OllamaReply("m"),
    "responses": lambda: ResponsesReply(
        Shell("resp_1", dict, "m"), partial(AnswerItems, lambda prefix: f"{prefix}_1", Tool)
    ),
}
LONG = [name for name in DOORS if name != "chat"]
"""Those that write at the end what they have been told before."""
_TIMES = re.compile(rb'"(created\w*|completed_at|\w+_duration)":("[^"]*"|\d+|null)')
_IDS = re.compile(rb'"(chatcmpl-|msg_)\w+"')

TEXTS = st.text(st.sampled_from(["a", "é", "\u2028", '"', "\\", "\n", "😀"]), max_size=60)
CALLS = st.builds(
    lambda n, text: ToolCall(f"f{n}", "{}" if not text else f'{{"a":"{len(text)}"}}', f"c{n}", n),
    st.integers(0, 3),
    TEXTS,
)
DELTAS = st.lists(
    st.builds(Delta, content=TEXTS)
    | st.builds(Delta, reasoning=TEXTS)
    | st.builds(lambda calls: Delta(tool_calls=tuple(calls)), st.lists(CALLS, max_size=4, unique_by=lambda c: c.index)),
    max_size=6,
)


@pytest.fixture
def small_calls() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliced_writer, "TEXT", 16)
        patch.setattr(sliced_writer, "_BUDGET", 3)
        patch.setattr(joined, "SMALL", 8)
        patch.setattr(joined, "PART", 16)
        yield patch


def written(reply: Any, deltas: list[Delta], *, long: bool) -> bytes:
    """The whole stream, without what depends on the moment."""
    with pytest.MonkeyPatch.context() as patch:
        if not isinstance(reply, ChatReply):
            patch.setattr(type(reply), "ends_long", property(lambda self: long))
        reply.start(TARGET)
        events = [reply.events(StreamBatch(deltas=(delta,), has_content=True, is_large=long)) for delta in deltas]
        said = b"".join((*events, reply.end(Usage(3, 4))))
    return _IDS.sub(b'"id"', _TIMES.sub(rb'"\1":0', said))


@given(st.sampled_from(sorted(DOORS)), DELTAS)
@settings(max_examples=examples(80))
def test_the_same_events(name: str, deltas: list[Delta]) -> None:
    """Whatever is said, byte by byte."""
    make = DOORS[name]
    deltas = [*deltas, Delta(finish="stop")]
    wanted = written(make(), deltas, long=False)
    with pytest.MonkeyPatch.context() as patch:
        for module, part, size in (
            (sliced_writer, "TEXT", 16),
            (sliced_writer, "_BUDGET", 3),
            (joined, "SMALL", 8),
            (joined, "PART", 16),
        ):
            patch.setattr(module, part, size)
        assert written(make(), deltas, long=True) == wanted


@pytest.mark.parametrize("name", LONG)
def test_what_is_long_is_known_and_written_in_short_calls(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text, in many pieces or in one, and many calls: no more of it at once than a part."""
    encoded: list[int] = []

    def counted(value: Any) -> bytes:
        encoded.append(len(text := json_object.encode(value)))
        return text

    for module in (messages, ollama, responses):
        if hasattr(module, "encode"):
            monkeypatch.setattr(module, "encode", counted)
    encode_large = sliced_writer.encode_large
    monkeypatch.setattr(sliced_writer, "encode_large", lambda value, encode: encode_large(value, counted))
    pieces = ['{"a":"', *(["words " * 30] * 3000), '"}']
    arguments = [ToolCall("" if n else "f", text, "" if n else "c") for n, text in enumerate(pieces)]
    calls = tuple(ToolCall("f", '{"a":"' + "x" * 500 + '"}', f"c{n}", n) for n in range(large.LARGE_PARTS + 1))
    unfinished = ToolCall("g", '{"a":', "g", 9999)
    for doors, deltas in (
        (["responses"], [Delta(content="some words " * 20)] * 3000),
        (["responses"], [Delta(reasoning="some words " * 20)] * 3000),
        (["ollama", "responses"], [Delta(tool_calls=(part,)) for part in arguments]),
        (LONG, [*(Delta(tool_calls=(call,)) for call in (unfinished, *calls)), Delta(finish="length")]),
    ):
        reply = DOORS[name]()
        reply.start(TARGET)
        for delta in deltas:
            reply.events(StreamBatch(deltas=(delta,), has_content=True))
        encoded.clear()
        assert reply.ends_long is (name in doors)
        if reply.ends_long:
            assert len(reply.end(None)) > 300_000
            assert max(encoded) <= sliced_writer.TEXT + 1000


CITED = {"type": "url_citation", "url": "http://x", "title": "", "start_index": 0, "end_index": 0}
CLOSING: dict[str, tuple[Delta, Delta]] = {
    "words end reasoning": (Delta(reasoning="some words " * 20), Delta(content="Hello")),
    "spliced words do": (Delta(reasoning="some words " * 20), Words((b"Hello",))),
    "a call does": (Delta(reasoning="some words " * 20), Delta(tool_calls=(ToolCall("f", "{}", "c"),))),
    "a citation does": (Delta(reasoning="some words " * 20), Delta(citations=(CITED,))),
    "reasoning ends words": (Delta(content="some words " * 20), Delta(reasoning="Hm")),
    "spliced reasoning does": (Delta(content="some words " * 20), Thoughts((b"Hm",))),
    "a call ends words": (Delta(content="some words " * 20), Delta(tool_calls=(ToolCall("f", "{}", "c"),))),
    "a refusal does": (Delta(content="some words " * 20), Delta(refusal="No")),
}


@pytest.mark.parametrize("case", CLOSING)
def test_what_ends_a_long_part_takes_long(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its whole text is told again: of 60 MB of reasoning the first word of the answer held the loop for 0.8 s."""
    before, after = CLOSING[case]
    replies = [DOORS["responses"](), DOORS["responses"]()]
    for reply in replies:
        reply.start(TARGET)
        for _ in range(3000):
            reply.events(StreamBatch(deltas=(before,), has_content=True))
    long, short = replies
    for deltas in ((after,), (before, after)):
        for _ in range(2):  # nothing has changed
            with pytest.raises(TakesLong):
                long.events(StreamBatch(deltas=deltas, has_content=True))
    encoded: list[int] = []

    def counted(value: Any) -> bytes:
        encoded.append(len(text := json_object.encode(value)))
        return text

    encode_large = sliced_writer.encode_large
    monkeypatch.setattr(responses, "encode", counted)
    monkeypatch.setattr(sliced_writer, "encode_large", lambda value, encode: encode_large(value, counted))
    told = long.events(StreamBatch(deltas=(after,), has_content=True, is_large=True))
    assert len(told) > 2 * 600_000
    assert max(encoded) <= sliced_writer.TEXT + 1000
    monkeypatch.setattr(AnswerItems, "closes_long", lambda self, deltas: False)
    assert told == short.events(StreamBatch(deltas=(after,), has_content=True))


def test_what_only_continues_it_does_not() -> None:
    """However long it is by now."""
    for words, more in (
        (Delta(content="some words " * 20), (Delta(content="x"), Words((b"x",)), Delta(citations=(CITED,)))),
        (Delta(reasoning="some words " * 20), (Delta(reasoning="x"), Thoughts((b"x",)))),
    ):
        reply = DOORS["responses"]()
        reply.start(TARGET)
        for _ in range(3000):
            reply.events(StreamBatch(deltas=(words,), has_content=True))
        for delta in more:
            assert len(reply.events(StreamBatch(deltas=(delta,), has_content=True))) < 1000
            assert len(reply.events(StreamBatch(deltas=(delta, delta), has_content=True))) < 2000


class Ending:
    """A reply that notes in which thread it is asked."""

    content_type = "text/event-stream"

    def __init__(self, *, ends_long: bool) -> None:
        self.ends_long = ends_long
        self.threads: list[int] = []
        self.hushed = 0

    usage = None

    def events(self, batch: StreamBatch) -> bytes:
        self.threads.append(threading.get_ident())
        return b"e"

    def end(self, usage: Usage | None) -> bytes:
        self.threads.append(threading.get_ident())
        return b"end"

    def stop_heartbeats(self) -> None:
        self.hushed += 1

    def try_write(self, data: bytes) -> bool:
        return False

    async def write(self, data: bytes) -> None:
        assert data == b"e"

    async def finish(self, data: bytes) -> None:
        assert data == b"end"


@pytest.mark.parametrize("long", [False, True])
async def test_it_runs_in_a_thread(long: bool) -> None:
    """An event, of which nothing is left, and the end, with no heartbeat beside it. What is short does not."""
    reply: Any = Ending(ends_long=long)
    assert isinstance(reply.ends_long, bool)
    stream = ClientStream(reply, reply, reply)
    batch = StreamBatch(deltas=(Delta(content="x"),), is_large=long)
    await stream.send(batch)
    await stream.finish()
    assert [thread != threading.get_ident() for thread in reply.threads] == [long, long]
    assert (batch.deltas == (), reply.hushed) == (long, int(long))


class Refusing(Ending):
    """One that would write megabytes, and is to do that in a thread."""

    def events(self, batch: StreamBatch) -> bytes:
        if not batch.is_large:
            raise TakesLong
        return super().events(batch)

    is_writable = True


async def test_what_takes_long_is_written_in_a_thread() -> None:
    """Not where its chunk arrived."""
    reply: Any = Refusing(ends_long=False)
    stream = ClientStream(reply, reply, reply)
    batch = StreamBatch(deltas=(Delta(content="x"),))
    assert not stream.try_write(batch)
    assert not reply.threads
    await stream.send(batch)
    assert [thread != threading.get_ident() for thread in reply.threads] == [True]
    assert batch.deltas == ()


def test_every_reply_says_so() -> None:
    """By its own state, before anything was said."""
    replies: list[Reply] = [make() for make in DOORS.values()]
    assert [reply.ends_long for reply in replies] == [False] * len(replies)
