"""The client's end of a stream: heartbeats that come too late, and events that are written part by part."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request

from manallm_proxy.contract.answers import Delta, StreamBatch
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.responses import reply as responses
from manallm_proxy.doors.responses.answer import AnswerItems
from manallm_proxy.doors.responses.reply import ResponsesReply
from manallm_proxy.doors.responses.shell import Shell
from manallm_proxy.doors.responses.tool_names import Tool
from manallm_proxy.gateway.client_stream import ClientStream
from manallm_proxy.gateway.flight_producer import FlightProducer, _Beat, _Sink
from manallm_proxy.http_server.stream_writer import PART_BYTES, StreamTiming, StreamWriter
from manallm_proxy.openai.sliced_writer import encoded_pieces
from manallm_proxy.routing.relay import Sink
from manallm_proxy.state.flights import Flight, Form


class Pipe:
    """A transport that keeps what is written, to a client that has read all of it."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default


LARGE = b"data: " + b"x" * (3 * PART_BYTES) + b"\n\n"


def body_of(written: bytes) -> bytes:
    """A chunked body as far as it came, without its framing."""
    rest, body = written.partition(b"\r\n\r\n")[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


async def test_nothing_stands_in_the_middle_of_a_large_event() -> None:
    """It is written part by part, with turns for others; a heartbeat that is due meanwhile is left out."""
    pipe = Pipe()
    request = make_mocked_request("POST", "/", transport=pipe)
    request.writer.output_size = 0
    writer = StreamWriter(
        request, {}, StreamTiming(heartbeat=1e-9, write_timeout=60, write_rate=1), lambda: b": keep-alive\n"
    )
    writing = asyncio.ensure_future(writer.write(LARGE))
    turns = 0
    while not writing.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 3 and len(pipe.written) > len(LARGE)
    writer.close()
    assert body_of(pipe.written).startswith(LARGE)


async def test_a_broken_stream_ends_the_event_that_was_being_written() -> None:
    """Else the error would be read as a part of it, and by no client."""
    pipe = Pipe()
    request = make_mocked_request("POST", "/", transport=pipe)
    request.writer.output_size = 0
    writer = StreamWriter(request, {}, StreamTiming(heartbeat=0, write_timeout=60, write_rate=1), lambda: b"")
    writing = asyncio.ensure_future(writer.write(LARGE))
    await asyncio.sleep(0)
    assert 0 < len(pipe.written) < len(LARGE)
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing
    await writer.break_off(b"data: error\n\n")
    writer.close()
    assert body_of(pipe.written) == LARGE + b"data: error\n\n"


async def test_a_heartbeat_that_is_due_as_the_stream_ends_is_not_sent() -> None:
    """It would stand after the last chunk, and be read as the beginning of the next answer."""
    pipe = Pipe()
    request = make_mocked_request("POST", "/", transport=pipe)
    request.writer.output_size = 0  # a mock, where a connection's writer has a number
    writer = StreamWriter(
        request, {}, StreamTiming(heartbeat=1e-9, write_timeout=60, write_rate=1), lambda: b": keep-alive\n"
    )
    await writer.write(b"data: 1\n\n")
    await asyncio.sleep(0)  # the timer is due: it fires after us in this turn, and has the writer looked at in the next
    await asyncio.sleep(0)  # which makes the heartbeat's task
    assert writer._heartbeat_task is None
    await asyncio.sleep(0)
    assert writer._heartbeat_task is not None and not writer._heartbeat_task.done()
    await writer.finish(b"data: [DONE]\n\n")
    await writer._heartbeat_task
    writer.close()
    assert pipe.written.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert b"keep-alive" not in pipe.written.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("shared", [False, True])
async def test_no_heartbeat_is_made_beside_what_a_thread_makes(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Responses it has a number: it had one that was given away, or one that came too early."""
    loop, pipe, flight = asyncio.get_running_loop(), Pipe(), Flight(Form(stream=True))
    reply = ResponsesReply(Shell("resp_1", dict, "m"), partial(AnswerItems, lambda prefix: f"{prefix}_1", Tool))
    request = make_mocked_request("POST", "/", transport=pipe)
    request.writer.output_size = 0
    writer = StreamWriter(request, {}, StreamTiming(heartbeat=1e-9, write_timeout=60, write_rate=1), reply.heartbeat)
    beat, nobody = _Beat(flight, reply, 1e-9), cast(Any, None)  # none of whom is asked
    sink: Sink = ClientStream(reply, writer, nobody)
    if shared:
        sink = _Sink(FlightProducer(nobody, b"", reply, nobody, nobody), flight, nobody, beat)
        beat.start()

    async def turns() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def pieces(value: Any, write: Callable[[Any], bytes]) -> Iterator[bytes | memoryview]:
        asyncio.run_coroutine_threadsafe(turns(), loop).result(20)
        return encoded_pieces(value, write)

    monkeypatch.setattr(responses, "encoded_pieces", pieces)
    reply.start(Target("gpu", "m"))
    await sink.send(StreamBatch(deltas=(Delta(content="Hello"),), has_content=True))
    await sink.send(StreamBatch(deltas=(Delta(reasoning="Hm"),), is_large=True))
    await turns()  # in which one may come
    writer.close()
    beat.stop()
    told = flight.held() or body_of(pipe.written)
    rows = [json.loads(line[6:]) for line in told.split(b"\n") if line.startswith(b"data: ")]
    assert [row["sequence_number"] for row in rows] == list(range(len(rows)))
    kinds = [row["type"] for row in rows]
    assert "response.in_progress" in kinds[kinds.index("response.reasoning_summary_text.delta") :]
