"""A native stream without a server: what is relayed does not depend on how it is cut, nor on what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import BadResponse, Disconnected
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai import sse
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.native.messages import MessagesRelay
from manallm_proxy.providers.native.plain_events import NOT_PLAIN, RESPONSES, PlainEvents
from manallm_proxy.providers.native.relay import NamedRelay
from manallm_proxy.providers.native.responses import ResponsesRelay
from manallm_proxy.providers.openai import chunks
from tests.cases import every
from tests.native_servers import begin, event, finish, message_begin, message_end, words

BODY = b'{"model":"x","input":"hi","messages":[],"stream":true}'
RELAYS: dict[str, type[NamedRelay]] = {"responses": ResponsesRelay, "messages": MessagesRelay}
texts = st.lists(
    st.text(max_size=6)
    | st.sampled_from(
        ['"response":', "error", '"error":{"message":"x"}', "message_stop", '"item"', "\n\nevent: ", "\r\n"]
    ),
    min_size=1,
    max_size=6,
)


def relay(kind: str, *, waits: bool = False) -> NamedRelay:
    call = Call(Endpoint.RESPONSES, read_summary(BODY, ("input", str)), BODY, "r", waits_for_words=waits)
    return RELAYS[kind](call, Target("p", "m"))


def stream(kind: str, said: list[str]) -> list[bytes]:
    if kind == "responses":
        return [*begin(), *words(*said), *finish("".join(said))]
    blocks = [event("content_block_start", index=1, content_block={"type": "text", "text": ""})]
    blocks += [event("content_block_delta", index=1, delta={"type": "text_delta", "text": text}) for text in said]
    return [*message_begin(), event("content_block_stop", index=0), *blocks, *message_end()]


def fed(one: NamedRelay, parts: list[bytes]) -> tuple[bytes, bool, bool]:
    """All frames, whether it committed, whether it is over; it never fails."""
    frames, committed, done = b"", 0, False
    for part in parts:
        batch = one.feed(part)
        assert batch.error is None
        frames += batch.frames
        committed += batch.has_content
        done = batch.done
        if done:
            break
    assert committed <= 1
    return frames, bool(committed), done


@pytest.mark.parametrize("kind", RELAYS)
def test_what_is_held_of_an_event_is_bounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is a word, and after one."""
    monkeypatch.setattr(sse, "FRAME_LIMIT", 5000)
    for parts in ([], stream(kind, ["a", "b"])[:-3]):
        one = relay(kind)
        fed(one, parts)
        assert one.feed(b"data: " + b"x" * 4000).error is None
        error = one.feed(b"x" * 1000).error
        assert isinstance(error, BadResponse) and error.detail == "endless event"


@given(st.sampled_from([*RELAYS]), texts, st.lists(st.integers(1, 900), max_size=12))
def test_however_it_is_cut_it_is_the_same(kind: str, said: list[str], cuts: list[int]) -> None:
    """And nothing in its words is taken for an error or an end."""
    frames = stream(kind, said)
    parts: list[bytes] = []
    rest = b"".join(frames)
    for cut in cuts:
        parts, rest = [*parts, rest[:cut]], rest[cut:]
    got = fed(relay(kind), [*filter(None, parts), rest] if rest else parts)
    assert got == fed(relay(kind), frames)
    assert got[1:] == (True, True)
    told = [json.loads(line[6:]) for line in got[0].decode().split("\n") if line.startswith("data: ")]
    deltas = (row["delta"] for row in told if row["type"].endswith("_delta") or row["type"].endswith("text.delta"))
    assert "".join(delta if isinstance(delta, str) else delta.get("text", "") for delta in deltas) == "".join(said)


@pytest.mark.parametrize("odd", [b"\xff", b"\xed\xa0\xbd", b'"', b"\\x"])
@pytest.mark.parametrize("kind", RELAYS)
def test_a_word_that_is_broken_breaks_no_answer(kind: str, odd: bytes) -> None:
    """It reaches the client as it is, whether it was alone in its read, cut, or came with others."""
    said = stream(kind, ["a", "ODD", "b"])
    frames = [frame.replace(b"ODD", odd if b"delta\n" in frame else b"b") for frame in said]
    assert sum(map(bytes.__ne__, frames, said))
    whole = b"".join(frames)
    alone = fed(relay(kind), frames)
    assert alone[1:] == (True, True)
    assert fed(relay(kind), [whole]) == alone
    assert fed(relay(kind), [bytes([byte]) for byte in whole]) == alone


@pytest.mark.parametrize("kind", RELAYS)
def test_what_is_no_object_breaks_the_answer(kind: str) -> None:
    """Alone in its read, too."""
    frames = stream(kind, ["a", "b"])
    broken = [*frames[:-5], b"event: x\ndata: {\n\n"]
    for parts in (broken, [b"".join(broken)]):
        one = relay(kind)
        *_, last = (one.feed(part) for part in parts)
        assert isinstance(last.error, BadResponse)


@given(st.sampled_from([*RELAYS]), st.data())
def test_lines_may_end_otherwise(kind: str, data: st.DataObject) -> None:
    """In some events, alone or together: each is read as if it had come by itself."""
    frames = stream(kind, ["a", "b", "c"])
    ends = [data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"])) for _ in frames]
    frames = [frame.replace(b"\n", end) for frame, end in zip(frames, ends, strict=True)]
    frames[-1] += b": an end\n\n"  # a CR alone may be half of a line's end
    got, wanted = fed(relay(kind), [b"".join(frames)]), fed(relay(kind), frames)
    assert (got, got[1:]) == (wanted, (True, True))


CASES: list[tuple[str, list[bytes], bool]] = [
    ("responses", begin(), False),
    ("responses", [event("response.output_item.added", item={"type": "function_call", "name": "x"})], True),
    ("responses", [event("response.web_search_call.searching", item_id="ws_1")], True),
    ("responses", [event("response.output_text.delta", delta="")], False),
    ("responses", [event("response.output_text.done", text="x")], True),
    ("responses", [event("keepalive"), b": x\n\n", b"data: null\n\n", b"data: [DONE]\n\n"], False),
    ("messages", message_begin(), False),
    ("messages", [event("content_block_start", content_block={"type": "tool_use", "name": "x"})], True),
    ("messages", [event("content_block_delta", delta={"type": "text_delta", "text": ""})], False),
    ("messages", [event("content_block_delta", delta={"type": "signature_delta", "signature": "x"})], False),
    ("messages", [event("message_delta", delta={"stop_reason": "end_turn"})], False),
    ("messages", [event("message_delta", delta={"stop_reason": "refusal"})], True),
]


@every(CASES)
def test_what_commits(kind: str, frames: list[bytes], commits: bool) -> None:
    """The first event that says something."""
    assert fed(relay(kind), frames)[1] is commits


def test_an_end_without_a_word() -> None:
    """Commits, unless words are waited for."""
    ends: dict[str, list[Any]] = {"responses": finish()[-1:], "messages": [*message_begin(), *message_end()]}
    empty = [event("response.completed", response={"id": "x", "output": []})]
    for kind, frames in (*ends.items(), ("responses", empty)):
        for waits in (False, True):
            _, committed, done = fed(relay(kind, waits=waits), frames)
            assert (done, committed) == (True, not waits or frames is ends["responses"])


def test_an_end_that_does_not_come() -> None:
    """After nothing, after a word, and in mid event; one that lacks its blank line alone is whole."""
    for kind in RELAYS:
        frames = stream(kind, ["x"])
        for cut in ([], frames[:-1], [*frames[:-1], frames[-1][:-9]]):
            one = relay(kind)
            fed(one, cut)
            assert isinstance(one.close().error, Disconnected)
        one = relay(kind)
        fed(one, [*frames[:-1], frames[-1][:-2]])
        assert one.close().done


class Slow(PlainEvents):
    """Nothing is plain: each event is read on its own."""

    def __init__(self) -> None:
        pass

    def until(self, data: bytes, at: int) -> int:
        return at


class SlowResponses(ResponsesRelay):
    plain = Slow()


class SlowMessages(MessagesRelay):
    plain = Slow()


SLOW: dict[str, type[NamedRelay]] = {"responses": SlowResponses, "messages": SlowMessages}
odd_words = st.sampled_from(
    [
        '"x","error":{"message":"no"}',
        '"x","error":null', '"x"}', '"x', '"x"},{"a":"b"', '"x"},null,{"a":"b"', '"\\q"',
        '"\\ud800"', '"a\\nb"', '""', "null", "[1", '2],"a":"b"', '"x","type":"error"', '"x","type":"response.failed"',
        '"x","logprobs":[{"token":"a"}]', '"x","obfuscation":"abc"', '"x","more":1', "1e999", '"x",\n"a":1',
        '"x"\r,"a":1',
        '"the error"', '"\\"response\\""', '"message_stop"', '"\u00fc"',
    ]
)  # fmt: skip


def odd_event(kind: str, name: str, words: str) -> bytes:
    if kind == "responses":
        row = f'{{"type":"{name}","item_id":"m","output_index":0,"content_index":0,"delta":{words}}}'
    else:
        row = f'{{"type":"{name}","index":0,"delta":{{"type":"text_delta","text":{words}}}}}'
    return f"event: {name}\ndata: {row}\n\n".encode()


NAMES = {
    "responses": ["response.output_text.delta"] * 3 + ["response.refusal.delta", "response.output_text.done", "new"],
    "messages": ["content_block_delta"] * 3 + ["ping", "content_block_stop"],
}


def outcome(one: NamedRelay, parts: list[bytes]) -> tuple[bytes, bool, str]:
    """All frames, whether it is over, and the error that it broke with."""
    frames = b""
    for part in parts:
        batch = one.feed(part)
        frames += batch.frames
        if batch.done or batch.error:
            return frames, batch.done, repr(batch.error)
    return frames, False, ""


@given(st.sampled_from(sorted(RELAYS)), st.data())
def test_events_that_arrive_together_are_told_as_each_on_its_own(kind: str, data: st.DataObject) -> None:
    """Whole or broken, plain or odd, in whatever order: the same bytes, the same error, in the same place."""
    count = data.draw(st.integers(1, 8))
    events = [
        odd_event(kind, data.draw(st.sampled_from(NAMES[kind])), data.draw(st.just('"hello "') | odd_words))
        for _ in range(count)
    ]
    whole = b"".join([*stream(kind, ["first"])[:-1], *events, *stream(kind, ["last"])[-1:]])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=3)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    call = relay(kind)._call
    assert outcome(relay(kind), parts) == outcome(SLOW[kind](call, Target("p", "m")), parts)


DELTA = NAMES["responses"][0]
ONE, HALF = f'{{"type":"{DELTA}","delta":"a"}}', f'{{"type":"{DELTA}"'


@every(
    [
        ("two in one", [f"{ONE},{ONE}"]),
        ("a comma between halves", [f"{ONE},{HALF}", '"delta":"b"}']),
        ("a string goes on", [f"{ONE},null,{ONE[:-2]}", 'b"}']),
        ("nothing", [ONE, "null", ONE]),
        ("two and nothing", [f"{ONE},null,{ONE}"]),
        ("a line break that JSON allows", [f'{HALF}\r,"delta":"b"}}']),
        ("a list goes on", [f'{ONE[:-1]},"logprobs":[null', f"null]}},null,{ONE}"]),
    ]
)
def test_what_is_whole_only_together_is_not_plain(case: str, rows: list[str]) -> None:
    """Broken events whose data would be an array of whole ones, were they only joined."""
    front = f"event: {DELTA}\ndata: "
    assert RESPONSES.until("".join(f"{front}{row}\n\n" for row in rows).encode(), 0) == NOT_PLAIN, case
    assert RESPONSES.until(f"{front}{ONE}\n\n".encode() * 3, 0) == 3 * (len(front) + len(ONE) + 2)


def test_events_that_arrive_together_are_not_decoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their words, which may look like the name of another event."""
    for kind in RELAYS:
        one, front = relay(kind), stream(kind, ["first"])
        front = front[: front.index(next(each for each in front if b"first" in each)) + 1]
        said = ['the "error"', "message_stop", '"response"', '"item"', "", "\u00fc"] * 20
        run = b"".join(odd_event(kind, NAMES[kind][0], json.dumps(words)) for words in said)
        one.feed(b"".join(front))
        with monkeypatch.context() as patched:
            patched.setattr(chunks, "read_chunk", lambda frame: pytest.fail(f"it was decoded: {frame}"))
            assert one.feed(run).frames == run


def test_what_is_odd_is_tried_a_few_times() -> None:
    """A provider that has more to say in each event is not looked at in vain for ever."""
    for kind in RELAYS:
        one, front = relay(kind), b"".join(stream(kind, ["first"])[:-2])
        odd = odd_event(kind, NAMES[kind][0], '"error","more":1')
        assert one.feed(front + odd * 50).frames.endswith(odd * 50)
        assert one._tries == 0
