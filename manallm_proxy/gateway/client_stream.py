"""The client's end of a stream: the door's `Reply` makes the bytes, the `StreamWriter` sends them."""

from __future__ import annotations

from attrs import define

from manallm_proxy.contract.answers import StreamBatch
from manallm_proxy.contract.door import Reply
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import Stream
from manallm_proxy.http_server.stream_writer import StreamWriter
from manallm_proxy.openai.large import aside


@define
class ClientStream:
    """See `relay.Sink`."""

    reply: Reply
    writer: StreamWriter
    stream: Stream

    async def send(self, batch: StreamBatch) -> None:
        await self.writer.write(await aside(batch.is_large, self.reply.events, batch))

    def try_write(self, batch: StreamBatch) -> bool:
        if not self.writer.is_writable:
            return False
        self.writer.write_now(self.reply.events(batch))
        return True

    async def finish(self) -> None:
        await self.writer.finish(self.reply.end(self.stream.usage))

    async def fail(self, error: ProxyError) -> None:
        await self.writer.break_off(self.reply.error(error))
