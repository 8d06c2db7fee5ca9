"""What is recognised and written by its bytes is what the same would be if it were read: every dialect, every door."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import (
    CallArguments,
    Delta,
    StreamBatch,
    Texts,
    Thoughts,
    ToolCall,
    Usage,
    Words,
    steps,
)
from manallm_proxy.contract.door import Reply
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.messages.blocks import Blocks
from manallm_proxy.doors.messages.reply import MessagesReply
from manallm_proxy.doors.messages.request import Thinking
from manallm_proxy.doors.ollama.reply import ChatReply as OllamaChatReply
from manallm_proxy.doors.ollama.reply import GenerateReply
from manallm_proxy.doors.openai_chat import ChatReply
from manallm_proxy.doors.openai_completions import CompletionsReply
from manallm_proxy.doors.responses.answer import AnswerItems
from manallm_proxy.doors.responses.reply import ResponsesReply
from manallm_proxy.doors.responses.shell import Shell
from manallm_proxy.doors.responses.tool_names import ToolNames
from manallm_proxy.openai.plain_text import MARK, Splice, are_texts, is_text, splice
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.gemini.stream import GeminiTranslator
from manallm_proxy.providers.ollama.wire import OllamaTranslator
from manallm_proxy.providers.openai.plain_chunks import PlainChunks
from manallm_proxy.providers.openai.stream import EventReader, EventRelay
from manallm_proxy.providers.wire import Translator
from tests.cases import every
from tests.recorded import recorded

BODY = b'{"model":"x","messages":[],"stream":true}'
SUMMARY = read_summary(BODY, ("messages", list))
TARGET = Target("p", "m")


class NoPattern(PlainChunks):
    """Learns nothing, so that each chunk is read."""

    def learn(self, data: bytes, delta: Delta) -> None: ...


def call(endpoint: Endpoint = Endpoint.CHAT) -> Call:
    return Call(endpoint, SUMMARY, BODY, "r")


MAKERS: dict[str, Callable[[int], Translator]] = {
    "ollama": lambda tries_left: OllamaTranslator(Endpoint.CHAT, tries_left=tries_left),
    "ollama generate": lambda tries_left: OllamaTranslator(Endpoint.COMPLETIONS, tries_left=tries_left),
    "gemini": lambda tries_left: GeminiTranslator(tries_left=tries_left),
    "chat": lambda tries_left: EventReader(call(), TARGET, plain=PlainChunks() if tries_left else NoPattern()),
    "relay": lambda tries_left: EventRelay(call(), TARGET, tries_left=tries_left),
}
"""By dialect: a translator that may learn a pattern from so many events."""

# -- what providers say ------------------------------------------------------------------------------------------------

PLAIN = st.text(max_size=8) | st.sampled_from(
    [
        '"',
        "\\",
        "\\\\",
        '"},"done":false}\n{"model":"m"',
        '"}],"role": "model"}',
        "\n\ndata: {",
        "\u2028\x85",
        "é😀",
        "",
        " a",
    ]
)
RAW = st.sampled_from(
    [
        rb"\ud83d\ude00",
        rb"\ud83d",
        rb"\u0000",
        b"\xff",
        b"\xc3",
        b"a\x01",
        b'x","content":"y',
        b'x","done":true,"a":"',
        rb"a\/",
        b"\\",
    ]
)
"""Between quotes: what no encoder of ours would write."""


def quoted(text: str | bytes, ascii_: bool) -> bytes:
    return (
        b'"%b"' % text if isinstance(text, bytes) else json.dumps(text, ensure_ascii=ascii_).encode("utf-8", "replace")
    )


STRINGS = st.builds(quoted, PLAIN | PLAIN | PLAIN | RAW, st.booleans())
MORE = st.sampled_from([b""] * 12 + [b',"thinking":"hm"', b',"tool_calls":[{"function":{"name":"f","arguments":{}}}]'])


@st.composite
def ollama_lines(draw: st.DrawFn, key: bytes) -> bytes:
    words, more = draw(STRINGS), draw(MORE)
    date = draw(st.sampled_from([b"2026-11-28T03:21:52.839445923Z", b"2026-11-28T05:21:52.8+02:00", rb"\"", b""]))
    kind = draw(
        st.sampled_from(
            ["plain"] * 6 + ["thinking"] * 5 + ["done", "logprobs", "turned", "twice", "error", "spaced", "none"]
        )
    )
    said = b'"message":{"role":"assistant","content":%b%b}' if key == b"content" else b'"response":%b%b'
    front = b'{"model":"m","created_at":"%b",' % date
    line = front + said % (words, more) + b',"done":false}'
    if kind == "thinking":
        said = (
            b'"message":{"role":"assistant","content":"","thinking":%b%b}'
            if key == b"content"
            else (b'"response":"","thinking":%b%b')
        )
        line = front + said % (words, more) + b',"done":false}'
    if kind == "done":
        line = front + said % (words, more) + b',"done":true,"done_reason":"stop","eval_count":3}'
    elif kind == "logprobs":
        line = line[:-1] + b',"logprobs":[{"token":"a","logprob":-1.5}]}'
    elif kind == "turned":
        line = b'{"done":false,' + said % (words, more) + b',"created_at":"%b","model":"m"}' % date
    elif kind == "twice":
        line = line[:-1] + b"," + said % (b'"again"', b"") + b"}"
    elif kind == "error":
        line = b'{"error":"it broke"}'
    elif kind == "spaced":
        line = line.replace(b'":', b'" : ')
    elif kind == "none":
        line = b""
    return line + b"\n"


@st.composite
def gemini_events(draw: st.DrawFn) -> bytes:
    words, count = draw(STRINGS), draw(st.sampled_from([b"1", b"12", b"01", b"", b"1e2", b"null", b'"x"']))
    kind = draw(
        st.sampled_from(
            ["plain"] * 6 + ["thought"] * 5 + ["finish", "two", "second", "usage", "blocked", "twice", "bare"]
        )
    )
    part = b'{"text": %b%b}' % (words, b',"thought": true' if kind == "thought" else b"")
    parts = part + (b',{"text": "two"}' if kind == "two" else b"")
    finish = b'"finishReason": "STOP",' if kind == "finish" else b""
    index = b"1" if kind == "second" else b"0"
    row = b'{"content": {"parts": [%b],"role": "model"},%b"index": %b}' % (parts, finish, index)
    usage = b'{"promptTokenCount": 12,"candidatesTokenCount": %b}' % count
    usage = b"[]" if kind == "usage" else usage
    last = b',"promptFeedback": {"blockReason": "SAFETY"}' if kind == "blocked" else b""
    last += b',"usageMetadata": {"promptTokenCount": 99}' if kind == "twice" else b""
    usage = b"" if kind == "bare" else b',"usageMetadata": ' + usage
    end = draw(st.sampled_from([b"\r\n\r\n"] * 8 + [b"\n\n"]))
    return b'data: {"candidates": [%b]%b,"modelVersion": "g"%b}' % (row, usage, last) + end


@st.composite
def chat_events(draw: st.DrawFn) -> bytes:
    words = draw(STRINGS)
    kind = draw(
        st.sampled_from(
            ["plain"] * 10
            + ["llama", "llama", "finish", "usage", "error", "twice", "null", "ping"]
            + ["reasoning"] * 4
            + ["reasoning, both"]
            + ["arguments"] * 8
            + ["call", "name alone", "second call", "arguments of two", "with id", "with words"]
        )
    )
    delta = b'{"content":%b}' % words
    if kind == "reasoning":
        delta = b'{"content":null,"reasoning_content":%b}' % words
    elif kind == "reasoning, both":
        delta = b'{"reasoning":%b,"reasoning_content":%b}' % (words, words)
    elif kind == "arguments":
        delta = b'{"tool_calls":[{"index":0,"function":{"arguments":%b}}]}' % words
    elif kind == "arguments of two":
        delta = b'{"tool_calls":[{"index":0,"function":{"arguments":%b}},{"index":1,"function":{}}]}' % words
    elif kind == "with id":
        delta = b'{"tool_calls":[{"index":0,"id":"c1","function":{"arguments":%b}}]}' % words
    elif kind == "with words":
        delta = b'{"content":"x","tool_calls":[{"index":0,"function":{"arguments":%b}}]}' % words
    elif kind in ("call", "name alone", "second call"):
        id_, said = (b"c2" if kind == "second call" else b"c1"), (b"" if kind == "name alone" else b"{")
        delta = b'{"tool_calls":[{"index":0,"id":"%b","function":{"name":"f","arguments":"%b"}}]}' % (id_, said)
    elif kind == "twice":
        delta = b'{"content":%b,"content":"again"}' % words
    elif kind == "null":
        delta = b'{"content":null}'
    finish = b'"stop"' if kind == "finish" else b"null"
    usage = b',"usage":{"prompt_tokens":3,"completion_tokens":4}' if kind == "usage" else b""
    if kind == "llama":  # llama.cpp: in the order of the alphabet, the model behind the words
        row = b'{"choices":[{"finish_reason":%b,"index":0,"delta":%b}],"created":1,"id":"c","model":"m"%b}'
    else:
        row = b'{"id":"c","model":"m","choices":[{"index":0,"delta":%b,"finish_reason":%b}]%b}'
        finish, delta = delta, finish
    if kind == "error":
        return b'data: {"error":{"message":"no"}}\n\n'
    return b": ping\n\n" if kind == "ping" else b"data: " + row % (finish, delta, usage) + b"\n\n"


FIRST = {
    "ollama": b'{"model":"m","created_at":"2026-11-28T03:21:52Z","message":{"role":"assistant","content":"x"},'
    b'"done":false}\n',
    "ollama generate": b'{"model":"m","created_at":"2026-11-28T03:21:52Z","response":"x","done":false}\n',
    "gemini": b'data: {"candidates": [{"content": {"parts": [{"text": "x"}],"role": "model"},"index": 0}],'
    b'"usageMetadata": {"promptTokenCount": 12,"candidatesTokenCount": 1},"modelVersion": "g"}\r\n\r\n',
    "chat": b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n',
}
EVENTS = {
    "ollama": ollama_lines(b"content"),
    "ollama generate": ollama_lines(b"response"),
    "gemini": gemini_events(),
    "chat": chat_events(),
}


CALL = '{"tool_calls":[{"index":0,"id":"c1","function":{"name":"f","arguments":"{"}}]}'
ARGUMENTS = '{"tool_calls":[{"index":0,"function":{"arguments":"a"}}]}'


def told(translator: Translator, reads: Iterable[bytes]) -> tuple[list[Delta], bytes, list[Any], Any]:
    """All that a translator makes of `reads`: steps, bytes, how it ended, and the tokens."""
    deltas: list[Delta] = []
    frames, end = b"", []
    for read in [*reads, b""]:
        plain = translator.relayed(read) if isinstance(translator, EventRelay) else b""
        batch = StreamBatch(plain) if plain else translator.feed(read) if read else translator.close()
        deltas += [without_id(step.plain() if isinstance(step, Texts) else step) for step in steps(batch.deltas)]
        frames += batch.frames
        if batch.done or batch.error:
            end = [batch.done, type(batch.error), str(batch.error)]
            break
    return deltas, frames, end, translator.usage


def without_id(delta: Delta) -> Delta:
    """Ids of calls are random."""
    return evolve(delta, tool_calls=tuple(evolve(c, id="") for c in delta.tool_calls)) if delta.tool_calls else delta


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places})
    return [part for start, end in zip([0, *at], [*at, len(data)], strict=True) if (part := data[start:end])]


@given(st.data(), st.sampled_from(sorted(MAKERS)), st.lists(st.integers(0, 10**6), max_size=3), st.booleans())
def test_a_pattern_changes_nothing(data: st.DataObject, dialect: str, places: list[int], one_by_one: bool) -> None:
    """Whatever comes, however it is cut: steps, bytes, errors and tokens are those of reading each event."""
    kind = "chat" if dialect == "relay" else dialect
    events = [FIRST[kind], FIRST[kind], *data.draw(st.lists(EVENTS[kind], min_size=1, max_size=8))]
    reads = events if one_by_one else events[:2] + cut(b"".join(events[2:]), places)
    assert told(MAKERS[dialect](16), reads) == told(MAKERS[dialect](0), events)


def test_patterns_are_found_and_used() -> None:
    """So that the test above tests something: plain events become words, one by one and together."""
    for dialect, first in FIRST.items():
        one = MAKERS[dialect](16)
        one.feed(first)
        one.feed(first)
        again = first.replace(b'"x"', rb'"a\"\n\u00e9"')
        for read, count in ((again, 1), (again * 3, 3)):
            (words,) = one.feed(read).deltas
            assert isinstance(words, Words), dialect
            assert list(words.texts) == [rb"a\"\n\u00e9"] * count
            assert words == Delta('a"\né' * count)
    for said, like in (
        (b'{"reasoning_content":"x"}', Thoughts([b"x"])),
        (b'{"reasoning":"x"}', Thoughts([b"x"], "reasoning")),
        (b'{"tool_calls":[{"index":1,"function":{"arguments":"x"}}]}', CallArguments([b"x"], 1)),
    ):
        one = MAKERS["chat"](16)
        chunk = FIRST["chat"].replace(b'{"content":"x"}', said)
        begins = CALL.replace('"index":0', '"index":1').encode()
        one.feed(chunk.replace(said, begins))
        assert one.feed(chunk).deltas == (like,)
        for count in (1, 3):
            (found,) = one.feed(chunk.replace(b'"x"', rb'"a\"\n\u00e9"') * count).deltas
            assert isinstance(found, type(like))
            assert list(found.texts) == [rb"a\"\n\u00e9"] * count
            assert found.text == 'a"\né' * count
    for dialect, old, new in (
        ("ollama", b'"content":"x"', b'"content":"","thinking":"x"'),
        ("ollama generate", b'"response":"x"', b'"response":"","thinking":"x"'),
        ("gemini", b'{"text": "x"', b'{"text": "x","thought": true'),
    ):
        translator, thought = MAKERS[dialect](16), FIRST[dialect].replace(old, new)
        translator.feed(thought)
        told_together = translator.feed(thought * 2 + FIRST[dialect] * 3).deltas
        assert told_together == (Thoughts([b"x", b"x"]), Delta("x"), Words([b"x", b"x"])), dialect
        assert [type(each) for each in told_together] == [Thoughts, Delta, Words]
    relay = MAKERS["relay"](16)
    llama = b'data: {"choices":[{"delta":{"content":"x"}}],"model":"m"}\n\n'
    renamed = llama.replace(b'"m"', b'"p/m"')
    for read in (llama, llama, llama * 2):
        assert relay.feed(read).frames == renamed * (len(read) // len(llama))
    assert isinstance(relay, EventRelay)
    assert relay._plain.is_known
    assert relay.relayed(llama) == renamed
    escaped = llama.replace(b'"x"', rb'"a\"\n\u00e9"')
    assert relay.relayed(escaped) == escaped.replace(b'"m"', b'"p/m"')
    for other in (llama * 2, llama[:-1], llama[1:], llama.replace(b'"x"', b'"x\x00"'), llama.replace(b'"x"', b'""')):
        assert not relay.relayed(other)
    relay.feed(llama[:10])
    assert not relay.relayed(llama)  # it would be part of the event that has begun


@every(
    [
        ("kept back", ['{"content":"x","tool_calls":[{"index":0,"function":{"arguments":"0"}}]}'] * 2, CALL),
        ("begins another", [CALL, *[ARGUMENTS] * 3, CALL.replace('"c1"', '""'), *[ARGUMENTS] * 3], ""),
        ("named again", [CALL, *[ARGUMENTS] * 3, CALL.replace('"{"', '""'), *[ARGUMENTS] * 3], ""),
        ("two calls", [CALL, *[ARGUMENTS] * 3, CALL.replace("c1", "c2"), *[ARGUMENTS] * 3], ""),
    ]
)
def test_a_call_that_another_chunk_begins(case: str, deltas: list[str], last: str) -> None:
    """What a part of a call means depends on those before it, so a pattern of it ends with each that is read."""
    row = '{"id":"c","model":"m","choices":[{"index":0,"delta":%s,"finish_reason":null}]}'
    first = [FIRST["chat"], FIRST["chat"]]
    events = [*first, *[f"data: {row % delta}\n\n".encode() for delta in [*deltas, last] if delta]]
    assert told(MAKERS["chat"](16), events) == told(MAKERS["chat"](0), events), case
    assert told(MAKERS["chat"](16), [b"".join(events)]) == told(MAKERS["chat"](0), events), case


def test_recorded_streams() -> None:
    """Real ones, whole and a byte at a time."""
    tapes = [("ollama", f"ollama-{n}") for n in ("chat", "tools", "logprobs", "killed")]
    tapes += [("ollama generate", "ollama-generate")]
    tapes += [(kind, name) for kind in ("chat", "relay") for name in ("llama-chat", "llama-killed", "ollama-v1-chat")]
    for dialect, name in tapes:
        body = recorded(f"stream-{name}").body
        blank = b"\n" if dialect.startswith("ollama") else b"\n\n"
        events = [part + blank for part in body.split(blank) if part]
        wanted = told(MAKERS[dialect](0), events)
        assert wanted[0] or wanted[1]
        for reads in (events, [body], [body[n : n + 1] for n in range(len(body))], [body[:700], body[700:]]):
            assert told(MAKERS[dialect](16), reads) == wanted, name


# -- what doors write --------------------------------------------------------------------------------------------------


def responses() -> ResponsesReply:
    shell = Shell("resp_1", dict, created_at=1)
    ids = iter(range(99))
    return ResponsesReply(shell, partial(AnswerItems, lambda kind: f"{kind}_{next(ids)}", ToolNames().tool))


REPLIES: dict[str, Callable[[], Reply]] = {
    "chat": lambda: ChatReply(SUMMARY),
    "completions": lambda: CompletionsReply(SUMMARY),
    "messages": lambda: MessagesReply("r", Blocks()),
    "messages, thoughts hidden": lambda: MessagesReply("r", Blocks(Thinking(shown=False))),
    "responses": responses,
    "ollama": lambda: OllamaChatReply("m"),
    "ollama generate": lambda: GenerateReply("m"),
}
VARYING = re.compile(rb'"(?:id|call_id|created|\w+_at|\w+_duration)":("[^"]*"|\d+)')
"""Members that differ from one reply to the next."""


def inside(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")[1:-1]


WORDS = st.lists(PLAIN.map(inside).filter(bool), min_size=1, max_size=3).map(lambda texts: Words(texts))
THOUGHTS = st.builds(
    Thoughts, WORDS.map(lambda words: words.texts), st.sampled_from(["reasoning", "reasoning_content"])
)
CALLED = st.builds(CallArguments, WORDS.map(lambda words: words.texts), st.just(0))
DELTAS = WORDS | WORDS | WORDS | THOUGHTS | THOUGHTS | CALLED | CALLED | st.sampled_from(
    [Delta("x"), Delta(reasoning="r"), Delta(refusal="no"), Delta("y", index=1), Delta(images=("data:,",)),
     Delta("z", logprobs={}), Delta(tool_calls=(ToolCall("f", "{", "c2", 1),)),
     Delta(tool_calls=(ToolCall("f", "{}", "c3", 0),)), Delta(tool_calls=(ToolCall("", "}", "", 1),))]
)  # fmt: skip
BEGINS = Delta(tool_calls=(ToolCall("f", "", "c1"),))
"""Arguments come after what they are arguments of: the dialects see to that."""


def spoken(reply: Reply, batches: list[StreamBatch]) -> list[Any]:
    """What a client reads, event by event."""
    reply.start(TARGET)
    written = b"".join([*map(reply.events, batches), reply.end(Usage(1, 2))])
    if isinstance(reply, OllamaChatReply | GenerateReply):
        assert written.decode().splitlines() == written.decode().split("\n")[:-1]
    lines = [VARYING.sub(b'"varying":0', line) for line in written.split(b"\n") if line]
    return [json.loads(line.removeprefix(b"data: ")) if b'{"' in line else line for line in lines]


def splices_what_it_would_write(door: str, batches: list[list[Delta]]) -> None:
    fast = [StreamBatch(deltas=tuple(deltas), has_content=True) for deltas in batches]
    slow = [
        evolve(batch, deltas=tuple(d.plain() if isinstance(d, Texts) else d for d in steps(batch.deltas)))
        for batch in fast
    ]
    assert spoken(REPLIES[door](), fast) == spoken(REPLIES[door](), slow), door


@given(st.sampled_from(sorted(REPLIES)), st.lists(st.lists(DELTAS, min_size=1, max_size=2), min_size=1, max_size=6))
def test_a_door_splices_what_it_would_write(door: str, batches: list[list[Delta]]) -> None:
    """Each text as its own step, among steps of other kinds."""
    splices_what_it_would_write(door, [[BEGINS], *batches])


OTHER = Delta(tool_calls=(ToolCall("g", "{", "c2", 1),))
TURNS: dict[str, list[Delta]] = {
    "words": [Delta("a"), Words([b"b"]), Words([b"c", b"d"]), Thoughts([b"t"]), Thoughts([b"u"]), Words([b"e"])],
    "thoughts": [Delta(reasoning="s"), Thoughts([b"t", b"u"]), Words([b"a"]), Words([b"b"])],
    "a call, and words before its end": [BEGINS, *[CallArguments([b]) for b in (b"{", b" ", b"}")], Words([b"a"])],
    "words while it lasts": [BEGINS, CallArguments([b"{"]), Words([b"a"]), CallArguments([b"}"]), Words([b"b"])],
    "two calls": [BEGINS, OTHER, *[CallArguments([b" "], n) for n in (1, 0, 1, 0)], CallArguments([b"{}"])],
    "the second of two": [BEGINS, CallArguments([b"{}"]), OTHER, *[CallArguments([b"}"], n) for n in (1, 1)]],
    "what comes after a call's end": [
        BEGINS,
        CallArguments([b"{}"]),
        OTHER,
        CallArguments([b" "]),
        CallArguments([b"}"], 1),
    ],
    "a call after words": [Delta("a"), BEGINS, CallArguments([b"{"]), CallArguments([b"}"]), Thoughts([b"t"])],
}


@every([*TURNS.items()])
def test_texts_continue_only_what_they_belong_to(case: str, deltas: list[Delta]) -> None:
    """Each alone in its read, as most are, and so one that may be spliced; or with others; by every door."""
    for door in REPLIES:
        splices_what_it_would_write(door, [[delta] for delta in deltas])
        splices_what_it_would_write(door, [deltas[:1], deltas[1:]])


def test_a_door_splices() -> None:
    """The bytes of a provider's string stand in the event as they are: nothing was decoded."""
    odd = rb"a\/\u0041"
    for door, make in REPLIES.items():
        reply = make()
        reply.start(TARGET)
        for words in (Words([b"one"]), Words([b"two"]), Words([odd])):
            written = reply.events(StreamBatch(deltas=(words,), has_content=True))
        assert odd in written, door


def test_what_is_inside_a_string() -> None:
    """Texts are judged one by one: what is valid together need not be so apart."""
    for raw in (b"a", rb"\"", rb"\ud83d\ude00", "é".encode()):
        assert is_text(raw)
        assert are_texts([raw, raw])
    for raw in (b'"', b"\\", b"\n", b"\xff", rb"\ud83d", rb"\x"):
        assert not is_text(raw)
        assert not are_texts([b"a", raw])
    assert not are_texts([b"\xc3", b"\xa9"])
    assert not are_texts([b"a\\", b'","b'])
    assert not are_texts([b"a", b""])


def test_a_mark_that_stands_twice_is_no_place() -> None:
    """A model's name may be anything."""
    mark = json.dumps(MARK).encode()
    assert splice(b"a" + mark[1:-1] + b"b") == Splice(b"a", b"b")
    assert splice(mark + mark) is None
