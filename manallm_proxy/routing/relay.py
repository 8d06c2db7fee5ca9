"""One answer from its first frame to its last.

The commit is a place in this file: `open_stream` returns when something was said, and until it does a
failure costs the client nothing. `relay` begins there, and from there on nothing is ever spliced.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from attrs import define, frozen

from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import Answer, Call, Provider, Stream, StreamBatch
from manallm_proxy.contract.provider_errors import Blame, ProviderError, StreamInterrupted, Unsupported
from manallm_proxy.contract.targets import Entry
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.failover import Served
from manallm_proxy.routing.health_registry import HealthRegistry

HOLD_LIMIT: Final = 64 * 1024
"""Bytes that may come before something is said; more of it is something."""


@frozen
class Opened:
    """A stream that has said something: what was held until then, and the rest to come."""

    stream: Stream
    held: tuple[StreamBatch, ...]


class Sink(Protocol):
    """The client's end of a stream."""

    async def send(self, batch: StreamBatch) -> None:
        """Hands on a piece's events. Waits while the client is slow."""

    def try_write(self, batch: StreamBatch) -> bool:
        """See `upstream.TryWrite`."""

    async def finish(self) -> None:
        """``[DONE]``, and the end."""

    async def fail(self, error: ProxyError) -> None:
        """An error event on an event boundary and the end, without ``[DONE]``."""


def refuse_lacking(catalog: Catalog, call: Call, entry: Entry) -> None:
    """Unsupported where the provider's own listing denies what the request needs; the unknown is tried."""
    lacking = catalog.lacks(entry.target, call.summary.needs)
    if lacking is not None:
        raise Unsupported(
            f"{entry.target} does not support {lacking}, says its provider; ask for another model",
            detail=lacking,
            param="messages" if lacking == "vision" else lacking if lacking == "tools" else "model",
        )


async def complete(upstream: Provider, catalog: Catalog, call: Call, entry: Entry) -> Answer:
    """An attempt at a whole answer."""
    refuse_lacking(catalog, call, entry)
    return await upstream.complete(call, entry)


async def open_stream(upstream: Provider, catalog: Catalog, call: Call, entry: Entry) -> Opened:
    """An attempt at a stream, up to the first event that says something, within ``first_byte``.

    What only keeps the connection warm (comments, a role, empty content) is held and leaves with that event.
    """
    refuse_lacking(catalog, call, entry)
    stream: Stream | None = None
    held: list[StreamBatch] = []
    size = 0
    try:
        async with asyncio.timeout(entry.timeouts.first_byte) as limit:
            stream = await upstream.stream(call, entry)
            while True:
                batch = await stream.next()
                held.append(batch)
                size += len(batch.frames) + sum(map(len, batch.events))
                if batch.error is not None and not batch.has_content:
                    raise batch.error
                if batch.has_content or batch.done or size > HOLD_LIMIT:
                    opened, stream = Opened(stream, tuple(held)), None
                    return opened
    except TimeoutError:
        if not limit.expired():
            raise
        raise upstream.first_byte_error(entry.timeouts.first_byte) from None
    finally:
        if stream is not None:
            await stream.aclose()


@define
class Relay:
    """Carries one committed stream. ``error`` is what broke it, None where it ended well."""

    served: Served[Opened]
    registry: HealthRegistry
    error: ProviderError | None = None

    async def run(self, sink: Sink) -> None:
        """To the last frame. Cancelled where the client leaves: then nobody is blamed."""
        stream, entry = self.served.value.stream, self.served.entry
        self.registry.began(entry.target, self.served.permit)
        try:
            for batch in self.served.value.held:
                await sink.send(batch)
            stream.commit(entry.timeouts.idle)  # behind the first byte, since a timer takes its time
            while not batch.done and batch.error is None:
                batch = await stream.next(sink.try_write)
                await sink.send(batch)
            self.error = batch.error
        except ProviderError as error:
            self.error = error
        finally:
            await stream.aclose()
        if self.error is None:
            self.registry.served(entry.target, self.served.permit)
            await sink.finish()
        else:
            await self._break(sink, self.error)

    async def _break(self, sink: Sink, error: ProviderError) -> None:
        """Tells the client in-band; the provider is blamed as the error says, and its caller's errors are not."""
        target = self.served.entry.target
        error.target = str(target)
        if error.blame is Blame.NOBODY or error.widened_by:
            self.served.permit.released()
        else:
            self.registry.failed(target, self.served.permit, error)
        await sink.fail(told_in_band(error))


def told_in_band(error: ProviderError) -> ProviderError:
    """A transport failure as a client reads it in mid stream; what a provider said itself stays as it is."""
    if error.source == "provider" and error.provider_status is not None:
        return error
    told = StreamInterrupted(f"the answer broke off: {error.message}", detail=error.detail)
    told.target = error.target
    return told
