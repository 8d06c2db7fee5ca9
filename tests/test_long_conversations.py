"""What the Responses door remembers of long conversations: bounded as a request, kept without a stop of the loop."""

from __future__ import annotations

import asyncio
import json
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.answers import Answer, Delta, StreamBatch
from manallm_proxy.contract.door import Client, DoorBounds
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.doors.responses.reply import ResponsesReply
from manallm_proxy.doors.responses.store import Bounds, MemoryStore, Stored, weighed
from manallm_proxy.openai.large import offload
from tests.proxy import openai, proxy, settings
from tests.responses import TARGET, Clock, Opened, checked
from tests.upstreams import Connection, Seen, each, upstream

USER = {"role": "user", "content": "hi"}
HELLO = Delta(content="Hello", finish="stop")


def stored(id_: str, *items: bytes, output: tuple[bytes, ...] = ()) -> Stored:
    return Stored(id_, b"{}", items, output, tuple(f"{id_}_{n}" for n in range(len(output))))


async def test_thousands_of_items_are_kept_in_turns() -> None:
    """As in one go, but that others run between; it is there once all of it is."""
    one, other = MemoryStore(Clock()), MemoryStore(Clock())
    items = [b"%d" % n for n in range(3500)]
    some = stored("a", *items, output=tuple(b"o%d" % n for n in range(2500)))
    one.keep(None, some)
    turns = 0
    keeping = asyncio.ensure_future(other.keep_in_turns(None, weighed(some)))
    while not keeping.done():
        assert other.find(None, "a") is None
        turns += 1
        await asyncio.sleep(0)
    assert turns > 7
    for store in (one, other):
        found = store.find(None, "a")
        assert found is not None and (found.input, found.output) == (some.input, some.output)
        assert store.find_items(None, ["a_7", "a_2499"]) == {"a_7": b"o7", "a_2499": b"o2499"}
    assert one.size == other.size
    assert one.forget(None, "a") and other.forget(None, "a")
    assert one.size == other.size == 0
    small = MemoryStore(Clock(), lambda: Bounds(memory=100_000))
    await small.keep_in_turns(None, weighed(some))
    assert len(small) == small.size == 0


async def test_what_has_thousands_of_items_is_removed_one_by_one() -> None:
    """Nine of 20,000 items that made room for a long one took 57 ms in one turn; so did those that expired together."""
    clock = Clock()
    store = MemoryStore(clock, lambda: Bounds(memory=9_000_000, ttl=10))
    for n in range(5):
        await store.keep_in_turns(None, weighed(stored(f"{n}", *[b"%d-%d" % (n, item) for item in range(5000)])))
    assert len(store) == 5
    keeping = asyncio.ensure_future(store.keep_in_turns(None, weighed(stored("long", b"x" * 8_000_000))))
    lengths = [len(store)]
    while not keeping.done():
        await asyncio.sleep(0)
        lengths.append(len(store))
    assert lengths[-1] == 1 and store.find(None, "long") is not None
    assert all(before - after <= 1 for before, after in pairwise(lengths))
    for n in range(3):
        await store.keep_in_turns(None, weighed(stored(f"{n}", *[b"%d-%d" % (n, item) for item in range(1100)])))
    clock.now += 11
    assert store.find(None, "2") is None and store.find_items(None, ["2_0"]) == {}
    assert len(store) == 1
    assert not store.forget(None, "2")
    store.trim()
    assert (len(store), store.size) == (0, 0)


async def test_a_long_history_is_kept_by_a_thread() -> None:
    """Which waits for the loop, so that the client can continue at once, streamed or whole."""
    opened = Opened()
    first = (await opened.ask(input=[USER] * 1500)).whole(HELLO)
    again = await opened.ask(previous_response_id=first["id"])
    assert again.reply.ends_long
    whole = json.loads(await offload(True, again.reply.whole, TARGET, Answer(choices=(HELLO,))))
    streamed = await opened.ask(previous_response_id=whole["id"])
    streamed.reply.start(TARGET)
    events = streamed.reply.events(StreamBatch(deltas=(HELLO,)))
    events += await offload(True, streamed.reply.end, None)
    last = checked(events)[-1]["response"]
    third = await opened.ask(previous_response_id=last["id"])
    assert len(third.chat["messages"]) == 1500 + 3 * 2


async def test_what_is_long_is_repeated_once() -> None:
    """Tools and instructions of a megabyte are in the response once it is complete, and in what is kept of it; not in
    each event before, which the loop writes. Short ones are in all of them."""
    opened = Opened()
    for length, is_long in ((900, False), (300_000, True)):
        tool = {"type": "function", "name": "f", "parameters": {}, "description": "y" * length}
        asked = await opened.ask(instructions="x" * length, tools=[tool], stream=True)
        asked.reply.start(TARGET)
        events = asked.reply.events(StreamBatch(deltas=(HELLO,))) + asked.reply.heartbeat()
        assert len(events) < 10_000
        assert asked.reply.ends_long is is_long
        told = checked(events + await offload(is_long, asked.reply.end, None))
        responses = [event["response"] for event in told if "response" in event]
        for response in responses:
            whole = response["status"] == "completed" or not is_long
            assert len(response["instructions"] or "") == (length if whole else 0)
            assert len(response["tools"]) == whole
        kept = opened.store.find(None, responses[-1]["id"])
        assert kept is not None and len(json.loads(kept.shell)["instructions"]) == length


async def test_what_a_request_refers_to_counts() -> None:
    """A few bytes may stand for gigabytes: so the conversation has the bounds of a request."""
    opened = Opened()
    response = (await opened.ask()).stream(Delta(content="x" * 10_000, finish="stop"))[-1]["response"]
    reference = {"type": "item_reference", "id": response["output"][0]["id"]}
    for body, bound in (
        ({"input": [reference] * 3}, ""),
        ({"input": [reference] * 4}, "40000 bytes (limits.body)"),
        ({"input": [USER, reference, reference, reference], "previous_response_id": response["id"]}, "limits.body"),
        ({"input": [USER] * 4, "previous_response_id": response["id"]}, ""),
        ({"input": [USER] * 5, "previous_response_id": response["id"]}, "6 items (limits.messages)"),
    ):
        client = Client("r", bounds=DoorBounds(messages=6, body=40_000))
        reading = opened.door.read(json.dumps({"model": "a/b", **body}).encode(), client)
        assert not isinstance(reading, tuple)
        if bound:
            with pytest.raises(InvalidRequest) as refused:
                await reading
            assert bound in str(refused.value)
        else:
            await reading


async def test_a_long_response_of_a_provider_is_kept_by_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which decodes it: the loop only relays its bytes."""
    threads: list[int] = []
    keep = ResponsesReply._keep_native

    def watched(self: ResponsesReply, response: bytes) -> None:
        threads.append(threading.get_ident())
        keep(self, response)

    monkeypatch.setattr(ResponsesReply, "_keep_native", watched)

    async def long(connection: Connection, seen: Seen) -> None:
        said = {"type": "output_text", "text": "x" * 400_000, "annotations": []}
        item: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "content": [said]}
        await connection.reply({"id": "resp_1", "status": "completed", "output": [item], "model": "m"})

    async with upstream(each(long)) as server:
        config = settings({"o": openai(server.url, speaks=["responses"])})
        async with proxy(config, tmp_path) as p:
            status, told, _ = await p.post("/v1/responses", {"model": "o/m", "input": "hi"})
            assert status == 200
            asked = {"model": "o/m", "input": "b", "previous_response_id": told["id"]}
            assert (await p.post("/v1/responses", asked))[0] == 200
    assert len(threads) == 2
    assert threading.get_ident() not in threads
