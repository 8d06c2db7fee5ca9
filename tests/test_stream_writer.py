"""The client's end of a stream: heartbeats that come too late."""

from __future__ import annotations

import asyncio

from aiohttp.test_utils import make_mocked_request

from manallm_proxy.http_server.stream_writer import Pace, StreamWriter


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


async def test_a_heartbeat_that_is_due_as_the_stream_ends_is_not_sent() -> None:
    """It would stand after the last chunk, and be read as the beginning of the next answer."""
    pipe = Pipe()
    request = make_mocked_request("POST", "/", transport=pipe)
    request.writer.output_size = 0  # a mock, where a connection's writer has a number
    writer = StreamWriter(request, {}, Pace(heartbeat=1e-9, write_timeout=60, write_rate=1), lambda: b": keep-alive\n")
    await writer.write(b"data: 1\n\n")
    await asyncio.sleep(0)  # the timer is due: it fires after us in this turn, and makes the heartbeat's task
    assert writer._heartbeat_task is None
    await asyncio.sleep(0)
    assert writer._heartbeat_task is not None and not writer._heartbeat_task.done()
    await writer.finish(b"data: [DONE]\n\n")
    await writer._heartbeat_task
    writer.close()
    assert pipe.written.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert b"keep-alive" not in pipe.written.partition(b"\r\n\r\n")[2]
