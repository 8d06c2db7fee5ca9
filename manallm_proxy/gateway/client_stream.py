"""The client's end of a stream: the door's `Reply` makes the bytes, the `StreamWriter` sends them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attrs import field

from manallm_proxy.contract.answers import StreamBatch
from manallm_proxy.contract.door import PartedReply, Reply, TakesLong
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import Stream
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.http_server.stream_writer import PART_BYTES, StreamWriter
from manallm_proxy.openai.deferred_free import free_later
from manallm_proxy.openai.large import free_in_thread, offload

LAST_BYTES: Final = 64 * 1024
"""Max bytes of a stream's last events that wait for its end; to copy more costs more than to write both."""


@define
class ClientStream:
    """See `relay.Sink`."""

    reply: Reply
    writer: StreamWriter
    stream: Stream
    _last: bytes = field(default=b"", repr=False)
    """The answer's last events, while its end is made: both are one write, and one packet."""

    async def send(self, batch: StreamBatch) -> None:
        if not batch.is_large:
            try:
                events = self.reply.events(batch)
            except TakesLong:
                batch.is_large = True
        if batch.is_large:
            self.writer.holds_heartbeats = True
            try:
                await self._send_large(batch)
            finally:
                self.writer.holds_heartbeats = False
            return
        if batch.done and batch.error is None and len(events) <= LAST_BYTES:
            self._last = events
            return
        if len(events) > PART_BYTES or not self.writer.try_write(events):
            await self.writer.write(events)

    def try_write(self, batch: StreamBatch | bytes) -> bool:
        if isinstance(batch, bytes):
            return self.writer.try_write(batch)
        if not self.writer.is_writable:
            return False
        try:
            events = self.reply.events(batch)
        except (ProviderError, TakesLong):  # which is raised again where something can be done about it
            return False
        return self.writer.try_write(events)

    async def _send_large(self, batch: StreamBatch) -> None:
        if not isinstance(self.reply, PartedReply):
            events = [await events_of(self.reply, batch)]
            await self.writer.write(events[0])
            free_in_thread(events)  # which else were freed here, in one go
            return
        await self._write_parts(self.reply.events_in_parts(batch))
        held, batch.deltas = [batch.deltas], ()
        free_in_thread(held)

    async def _write_parts(self, parts: Iterator[bytes]) -> None:
        while await self._write_next(parts):  # so that none is held while the next is made
            pass

    async def _write_next(self, parts: Iterator[bytes]) -> bool:
        """Whether there was one."""
        part = await offload(True, next, parts, None)
        if part is None:
            return False
        await self.writer.write(part)
        held = [part]
        del part
        free_in_thread(held)
        return True

    async def finish(self) -> None:
        long = self.reply.ends_long
        if long:
            self.writer.stop_heartbeats()  # a heartbeat would be written by the same reply at the same time
            if self._last:
                await self.writer.write(self._last)
                self._last = b""
            if isinstance(self.reply, PartedReply):
                await self._write_parts(self.reply.end_in_parts(self.stream.usage))
                await self.writer.finish(b"")
                return
        last = self._last + await offload(long, self.reply.end, self.stream.usage)
        await self.writer.finish(last)
        if long:
            held = [last]
            del last
            free_in_thread(held)

    async def fail(self, error: ProxyError) -> None:
        long = self.reply.ends_long
        if long:
            self.writer.stop_heartbeats()
        await self.writer.break_off(self._last + await offload(long, self.reply.error, error))


async def events_of(reply: Reply, batch: StreamBatch) -> bytes:
    """The door's events for `batch`; if these take long to write, it is a large one from now on. Of a large batch, all
    but the frames is freed."""
    if not batch.is_large:
        try:
            return reply.events(batch)
        except TakesLong:
            batch.is_large = True
    return await offload(True, _events, reply, batch)


def _events(reply: Reply, batch: StreamBatch) -> bytes:
    events = reply.events(batch)
    free_later(batch.deltas)
    batch.deltas = ()
    return events
