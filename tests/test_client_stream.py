"""What a client's stream is written in: how many writes, and which."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from attrs import define, field

from manallm_proxy.contract.answers import StreamBatch
from manallm_proxy.contract.errors import InternalError
from manallm_proxy.contract.provider_errors import Disconnected
from manallm_proxy.gateway.client_stream import LAST_BYTES, ClientStream
from manallm_proxy.http_server.raw_response import RawResponse
from tests.proxy import HI, everything, openai, proxy, settings
from tests.upstreams import DONE, Connection, Seen, chunk, each, upstream


@define
class Both:
    """A door's reply, the stream that it is made of, and who writes it."""

    ends_long: bool = False
    usage: None = None
    written: list[bytes] = field(factory=list)

    def events(self, batch: StreamBatch) -> bytes:
        return batch.frames

    def end(self, usage: None) -> bytes:
        return b"end"

    def error(self, error: Exception) -> bytes:
        return b"broken"

    async def write(self, data: bytes) -> None:
        self.written.append(data)

    finish = break_off = write

    def try_write(self, data: bytes) -> bool:
        self.written.append(data)
        return True

    def stop_heartbeats(self) -> None:
        self.written.append(b"(hush)")


LONG = b"x" * (LAST_BYTES + 1)


@pytest.mark.parametrize(
    ("batches", "ends_long", "written"),
    [
        ([StreamBatch(frames=b"a"), StreamBatch(frames=b"b", done=True)], False, [b"a", b"bend"]),
        ([StreamBatch(frames=b"ab", done=True)], False, [b"abend"]),
        ([StreamBatch(frames=LONG, done=True)], False, [LONG, b"end"]),
        ([StreamBatch(frames=b"a"), StreamBatch(frames=b"b", done=True)], True, [b"a", b"(hush)", b"b", b"end"]),
    ],
    ids=["the last events", "the only ones", "too many to copy", "an end that takes its time"],
)
async def test_the_last_events_leave_with_the_end(
    batches: list[StreamBatch], ends_long: bool, written: list[bytes]
) -> None:
    """In one write, unless they would be copied for it or would wait for it."""
    both: Any = Both(ends_long)
    client = ClientStream(both, both, both)
    for batch in batches:
        await client.send(batch)
    await client.finish()
    assert both.written == written


async def test_an_answer_of_a_hundred_chunks_in_one_read_is_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each piece of it, and its end, costs a write and a turn."""
    words = [chunk(f"word {number} " + 10 * "and more ") for number in range(100)]
    body = chunk(role=True) + b"".join(words) + chunk(finish="stop") + DONE
    assert 20_000 < len(body) < 32_000
    written: list[int] = []
    put = RawResponse.put

    def counted(response: RawResponse, data: bytes, *, last: bool = True) -> None:
        written.append(len(data))
        put(response, data, last=last)

    async def at_once(connection: Connection, seen: Seen) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        await connection.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    async with upstream(each(at_once)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        monkeypatch.setattr(RawResponse, "put", counted)
        response = await p.client.post(f"{p.url}/v1/chat/completions", json={**HI, "stream": True})
        heard = await everything(response)
    assert heard.count(b"and more") == 1000 and heard.endswith(DONE)
    assert len(written) == 1


async def test_nothing_is_kept_back_from_a_broken_answer() -> None:
    """What was read before it broke is written before that is told."""
    both: Any = Both()
    client = ClientStream(both, both, both)
    await client.send(StreamBatch(frames=b"a", done=True, error=cast(Any, Disconnected("gone"))))
    await client.fail(InternalError("gone"))
    assert both.written == [b"a", b"broken"]
    await client.send(StreamBatch(frames=b"b", done=True))
    await client.fail(InternalError("gone"))
    assert both.written == [b"a", b"broken", b"bbroken"]
