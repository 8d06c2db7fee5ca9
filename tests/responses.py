"""The Responses door without a server: a request in, a chat and a reply out; and streams of its events, checked."""

from __future__ import annotations

import json
from typing import Any

from attrs import define, field

from manallm_proxy.contract.answers import Answer, Delta, StreamBatch, Usage
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.responses.door import ResponsesDoor
from manallm_proxy.doors.responses.reply import ResponsesReply
from manallm_proxy.doors.responses.store import Bounds, MemoryStore
from manallm_proxy.http_server.stream_writer import AFTER_LAST

TARGET = Target("p", "m")
FUNCTION = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False}
FIELDS = {
    *("id", "object", "created_at", "status", "background", "completed_at", "error", "incomplete_details"),
    *("instructions", "max_output_tokens", "max_tool_calls", "metadata", "model", "output", "parallel_tool_calls"),
    *("previous_response_id", "prompt_cache_key", "reasoning", "safety_identifier", "service_tier", "store"),
    *("temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "usage", "user"),
}
"""Of a response object, always."""
LAST = {"response.completed", "response.incomplete", "response.failed"}


@define(eq=False)
class Clock:
    """Monotonic seconds that a test moves."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@define(eq=False)
class Exchanged:
    """One request, as the gateway gets it from the door."""

    call: Call
    reply: ResponsesReply

    @property
    def chat(self) -> Any:
        return json.loads(self.call.body)

    def at(self, provider: str) -> Any:
        """The chat as `provider` gets it."""
        return json.loads(self.call.at(provider).body)

    def whole(self, *deltas: Delta, usage: Usage | None = None) -> Any:
        """The response to one complete answer."""
        return json.loads(self.reply.whole(TARGET, Answer(choices=deltas, usage=usage)))

    def stream(self, *deltas: Delta, usage: Usage | None = None) -> list[dict[str, Any]]:
        """The checked events of a stream, a delta a batch."""
        return checked(self.stream_bytes(*deltas, usage=usage))

    def stream_bytes(self, *deltas: Delta, usage: Usage | None = None) -> bytes:
        """The same, unread."""
        self.reply.start(TARGET)
        written = [self.reply.events(StreamBatch(deltas=(delta,))) for delta in deltas]
        return b"".join(written) + self.reply.end(usage)


@define(eq=False)
class Opened:
    """A door, and a store of its own."""

    clock: Clock = field(factory=Clock)
    bounds: Bounds = Bounds()
    store: MemoryStore = field(init=False)
    door: ResponsesDoor = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.store = MemoryStore(self.clock, lambda: self.bounds)
        self.door = ResponsesDoor(self.store)

    async def ask(self, key: str | None = None, /, **body: Any) -> Exchanged:
        """What the door makes of a request of `key`'s, for providers that speak chat."""
        reading = self.door.read(json.dumps({"input": "hi", **body}).encode(), Client("r", key))
        call, reply = reading if isinstance(reading, tuple) else await reading
        if call.refusal is not None:
            raise call.refusal
        return Exchanged(call, reply)


async def chat_of(provider: str = "", /, **body: Any) -> Any:
    """The chat that a request becomes, for `provider`."""
    return (await Opened().ask(**body)).at(provider)


def parsed(data: bytes) -> list[dict[str, Any]]:
    """Frames of one event each, named as their data says, numbered without a gap."""
    data = data[: -len(AFTER_LAST)] if data.endswith(b"\n\n" + AFTER_LAST) else data
    assert data.endswith(b"\n\n")
    events: list[dict[str, Any]] = []
    for frame in data.decode().removesuffix("\n\n").split("\n\n"):
        name, line = frame.split("\n")
        event = json.loads(line.removeprefix("data: "))
        assert (name, event["sequence_number"]) == (f"event: {event['type']}", len(events))
        events.append(event)
    return events


def checked(data: bytes) -> list[dict[str, Any]]:
    """The same of a complete stream: the order that all clients need, and every text equal to its deltas."""
    events = parsed(data)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in LAST
    assert not LAST & set(kinds[:-1])
    responses = [event["response"] for event in events if "response" in event]
    assert all(set(response) == FIELDS for response in responses)
    assert len({response["id"] for response in responses}) == 1
    items: dict[int, _Watched] = {}
    for event in events:
        index = event.get("output_index")
        if event["type"] == "response.output_item.added":
            assert index == len(items)
            items[index] = _Watched(event["item"])
        elif index is not None:
            items[index].take(event)
    assert [item.done for item in items.values()] == responses[-1]["output"]
    return events


@define(eq=False)
class _Watched:
    """One item from its first event to its last."""

    added: dict[str, Any]
    done: dict[str, Any] | None = None
    _deltas: str = ""
    _cited: int = 0

    def __attrs_post_init__(self) -> None:
        assert self.added["status"] == "in_progress"
        assert not any(self.added.get(key) for key in ("content", "summary", "arguments", "input"))

    def take(self, event: dict[str, Any]) -> None:
        assert self.done is None, "nothing comes after output_item.done"
        kind = event["type"]
        if kind == "response.output_item.done":
            self.done = event["item"]
            assert (self.done["id"], self.done["type"]) == (self.added["id"], self.added["type"])
            assert self.done["status"] in ("completed", "incomplete")
            return
        assert event["item_id"] == self.added["id"]
        if kind.endswith(".delta"):
            self._deltas += event["delta"]
        elif kind.endswith(("part.added", "part.done")):
            assert "part" in event
        elif kind.endswith("annotation.added"):
            self._cited += 1
            assert event["annotation_index"] == self._cited - 1
        else:
            whole = next(event[key] for key in ("text", "refusal", "arguments", "input") if key in event)
            assert whole == self._deltas
            self._deltas = ""
