"""A native stream without a server: what is relayed does not depend on how it is cut, nor on what it says."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import Disconnected
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.native.messages import MessagesRelay
from manallm_proxy.providers.native.relay import NamedRelay
from manallm_proxy.providers.native.responses import ResponsesRelay
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
