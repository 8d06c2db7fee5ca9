"""A chunk that is recognised by its bytes says what it would say if it were read."""

from __future__ import annotations

import json
import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Delta, StreamBatch
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.openai.plain_chunks import PlainChunks
from manallm_proxy.providers.openai.stream import EventReader

BODY = b'{"model":"x","messages":[],"stream":true}'


def reader(endpoint: Endpoint = Endpoint.CHAT) -> EventReader:
    return EventReader(
        Call(endpoint, read_summary(BODY, ("messages", list)), BODY, "r", relays=False), Target("p", "m")
    )


def frame(delta: dict[str, Any], *, spaces: bool = False, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    row = {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **more}
    return b"data: " + json.dumps(row, separators=(", ", ": ") if spaces else (",", ":")).encode() + b"\n\n"


def told_apart(frames: list[bytes]) -> list[StreamBatch]:
    """Each read by a stream of its own, which has seen content, but no pattern."""
    batches = []
    for each in frames:
        alone = reader()
        alone.feed(frame({"content": "x"}, other=1))
        batches.append(alone.feed(each))
    return batches


texts = st.text(max_size=8) | st.sampled_from(
    ['"', "\\", '"},"finish_reason":"stop"', "\n\ndata: {", "\u2028", "é", ""]
)
deltas = st.one_of(
    st.builds(lambda text: {"content": text}, texts),
    st.builds(lambda text: {"content": text}, texts),
    st.builds(lambda text: {"role": "assistant", "content": text}, texts),
    st.builds(lambda text: {"content": text, "reasoning_content": text}, texts),
    st.just({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "content", "arguments": "{}"}}]}),
    st.just({}),
)
frames_ = st.builds(
    frame,
    deltas,
    spaces=st.booleans(),
    finish=st.sampled_from([None, None, None, "stop"]),
) | st.builds(lambda delta, pad: frame(delta, obfuscation=pad), deltas, st.text("aZ9+/", max_size=5))


@given(st.lists(frames_, min_size=1, max_size=8))
def test_a_pattern_changes_nothing(frames: list[bytes]) -> None:
    """Whatever came before it."""
    one = reader()
    one.feed(frame({"content": "x"}))
    for each, wanted in zip(frames, told_apart(frames), strict=True):
        got = one.feed(each)
        assert (got.deltas, got.frames, got.done, got.error) == (wanted.deltas, b"", wanted.done, wanted.error)


def test_a_pattern_is_found_and_used() -> None:
    """From the second chunk of its kind on; padding of any length is none of its words."""
    patterns: list[dict[str, Any]] = [{}, {"obfuscation": "abc"}]
    for more in patterns:
        plain = PlainChunks()
        first = frame({"content": "one"}, **more)
        assert plain.read(first) == ((), 0)
        plain.learn(first, Delta("one"))
        longer: dict[str, Any] = {"obfuscation": "x" * 9} if more else {}
        again = frame({"content": 'tw"o\n'}, **longer)
        assert plain.read(again) == ((rb"tw\"o\n",), len(again))
        both = ([rb"tw\"o\n"] * 2, 2 * len(again))
        assert plain.read(again + again + b"da") == (((), 0) if more else both)
        for other in (
            frame({"content": "one"}, **more, usage={"prompt_tokens": 1}),
            frame({"content": "one", "reasoning": "x"}, **more),
            frame({"content": "one"}, finish="stop", **more),
            first[:-1],
            first.replace(b'"one"', b"17"),
            first.replace(b'"one"', b'"\\ud800"'),
            first.replace(b'"one"', b'"one","content":"two"'),
        ):
            assert plain.read(other) == ((), 0)


def test_what_is_no_pattern() -> None:
    """Words that stand elsewhere, or twice."""
    for data, delta in (
        (frame({"content": "x"}, content="x"), Delta("x")),
        (frame({"content": [{"text": "x"}]}), Delta("x")),
        (frame({"content": "x", "reasoning": "y"}), Delta("x", "y")),
        (frame({"content": "x"}, finish="stop"), Delta("x", finish="stop")),
    ):
        plain = PlainChunks()
        plain.learn(data, delta)
        assert plain.read(data) == ((), 0)


def test_a_long_text_is_found_in_milliseconds() -> None:
    """The loop waits for it: a mebibyte took 570 ms where each byte was a step to go back to."""
    for text in ("x" * 2**20, '\\n\\"' * 2**16):
        data = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text.encode()
        taken: list[float] = []
        while len(taken) < 3 and min(taken, default=1.0) > 0.15:
            began = time.thread_time()
            assert PlainChunks().learn_relayed(data, data) is not None
            taken.append(time.thread_time() - began)
        assert min(taken) < 0.15, text[:4]
