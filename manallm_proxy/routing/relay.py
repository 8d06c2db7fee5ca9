"""One answer from its first event to its last.

The commit is a place in this file: `open_stream` returns when the stream has content, and a failure before that
costs the client nothing. `Relay` carries the stream from there on, and never continues it with another provider's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from attrs import evolve

from manallm_proxy.contract.answers import Answer, StreamBatch, Usage
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import Call, ModelInfo, Provider, Stream
from manallm_proxy.contract.provider_errors import Blame, EmptyAnswer, ProviderError, StreamInterrupted, Unsupported
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry
from manallm_proxy.contract.tracebacks import clear_tracebacks
from manallm_proxy.routing.attempt import Attempt
from manallm_proxy.routing.catalog import Catalog

_NOTHING: Final = StreamBatch()
HOLD_LIMIT: Final = 64 * 1024
"""Bytes (of raw events) or deltas that may come before there is content. Above this we commit anyway, so that
buffering stays bounded."""
OPTIONAL: Final = frozenset({"thinking"})
"""Capabilities that a request can do without: the fields that ask for them are left out if the target lacks them."""
_BYTES_A_TOKEN: Final = 3
"""A low estimate, so that prompts are over- rather than underestimated."""
_EARLY: Final = 0.002
"""Seconds by which a timer may fire too early: an event loop's clock counts milliseconds."""
COMPLETE: Final = "completion"
"""Lists with this capability (Ollama's) are complete: what they do not name, the model lacks."""


@define(eq=False)  # not frozen: there is one for each stream
class Opened:
    """A stream that has content: the batches held until then, and the stream of those to come."""

    stream: Stream
    held: tuple[StreamBatch, ...]
    left: Callable[[Usage | None], None] | None = None
    """Called with the usage, or None, when the stream is closed."""

    @property
    def content_type(self) -> str:
        """See `StreamBatch.content_type`; empty: the door's own."""
        return self.held[0].content_type

    async def aclose(self) -> None:
        """Stops the provider's work on the answer."""
        try:
            await self.stream.aclose()
        finally:
            if self.left is not None:
                self.left(self.stream.usage)


class Sink(Protocol):
    """The client's end of a stream."""

    async def send(self, batch: StreamBatch) -> None:
        """Forwards a batch's events. Waits while the client is slow."""

    def try_write(self, batch: StreamBatch | bytes) -> bool:
        """See `provider.TryWrite`."""

    async def finish(self) -> None:
        """The end of a complete answer."""

    async def fail(self, error: ProxyError) -> None:
        """Writes an error event, and ends so that no client takes the answer for complete."""


def for_target(catalog: Catalog, call: Call, entry: Entry) -> Call:
    """`call` as `entry`'s target gets it.

    Raises Unsupported if the provider's list denies a capability that the request needs. If it is silent, it is tried.
    """
    if EmptyAnswer.widened_by in entry.fallback_on:
        call = evolve(call, waits_for_words=True)
    listed = catalog.find(entry.target)
    if call.cuts_length:
        call = _cut(call, entry, listed)
    if listed is None or listed.capabilities is None:
        return call
    if missing := call.summary.needs_beside(listed.capabilities):
        raise _unsupported(entry, min(missing))
    denied = OPTIONAL - listed.capabilities if COMPLETE in listed.capabilities else None
    return evolve(call, denied=denied) if denied else call


def _cut(call: Call, entry: Entry, listed: ModelInfo | None) -> Call:
    """`call` with no more tokens than an answer of `entry`'s target can have, as far as is known.

    Prompt and answer share a window. The prompt is estimated high, but a quarter of the window is always the answer's:
    a prompt that large is refused by the provider, with the true numbers.
    """
    window, most = (listed.context_length, listed.max_output) if listed is not None else (0, 0)
    asked = entry.options.get("num_ctx")
    if isinstance(asked, int):
        window = min(asked, window or asked)
    length = call.length
    if length is None or length <= min(window // 4 or length, most or length):
        return call  # which is so nearly always, and whatever the prompt
    room = max(window - call.text_size() // _BYTES_A_TOKEN, window // 4) if window else 0
    return evolve(call, most=min(filter(None, (room, most)), default=0))


def _unsupported(entry: Entry, lacking: str) -> Unsupported:
    return Unsupported(
        f"{entry.target} does not support {lacking}, says its provider; ask for another model",
        detail=lacking,
        param="messages" if lacking == "vision" else lacking if lacking == "tools" else "model",
    )


async def complete(provider: Provider, catalog: Catalog, call: Call, entry: Entry) -> Answer:
    """An attempt at a whole answer."""
    try:
        return await provider.complete(for_target(catalog, call, entry), entry)
    except ProxyError as error:
        _translate_error(call, error)
        raise


async def open_stream(provider: Provider, catalog: Catalog, call: Call, entry: Entry) -> Opened:
    """An attempt at a stream, up to the first event that has content, within ``first_byte`` seconds.

    Events without content (a role, an empty delta) are held and leave with that event.
    """
    stream: Stream | None = None
    held: list[StreamBatch] = []
    size = 0
    loop = asyncio.get_running_loop()
    until = loop.time() + entry.timeouts.first_byte  # not `asyncio.timeout`, which is a timer for each stream
    try:
        call = for_target(catalog, call, entry)
        stream = await provider.stream(call, entry, until)
        while True:
            batch = await stream.next(until=until)
            if batch != _NOTHING:  # as comments are, of which there may be megabytes before the first event
                held.append(batch)
            size += len(batch.frames) + len(batch.deltas)
            has_content = batch.has_content and not (call.waits_for_words and _is_bare_end(batch))
            if batch.error is not None and not has_content:
                raise batch.error
            if batch.done and not has_content and call.waits_for_words:
                raise EmptyAnswer(f"{entry.target} ended without a word")
            if has_content or batch.done or size > HOLD_LIMIT:
                opened, stream = Opened(stream, tuple(held)), None
                return opened
            if loop.time() >= until:  # it never fell silent, but said nothing
                raise TimeoutError
    except TimeoutError:
        if loop.time() < until - _EARLY:
            raise
        raise provider.first_byte_error(entry.timeouts.first_byte) from None
    except ProxyError as error:
        _translate_error(call, error)
        if isinstance(error, ProviderError) and stream is not None:
            error.usage = stream.usage
        raise
    finally:
        if stream is not None:
            await stream.aclose()


def _is_bare_end(batch: StreamBatch) -> bool:
    """Whether the deltas in `batch` hold nothing but a finish reason. (For raw events the wire decides that.)"""
    return bool(batch.deltas) and not any(delta.has_words for delta in batch.deltas)


def _translate_error(call: Call, error: ProxyError) -> None:
    """Makes `error` refer to the client's own request, see `Call.translate_error`."""
    if call.translate_error is not None:
        call.translate_error(error)


@define
class Relay:
    """Relays one committed stream. ``error`` is what broke it; None if it ended well."""

    attempt: Attempt[Opened]
    error: ProviderError | None = None

    async def run(self, sink: Sink) -> None:
        """Relays up to the last event. Cancelled when the client leaves; then nobody is blamed."""
        stream, entry = self.attempt.value.stream, self.attempt.entry
        self.attempt.began()
        try:
            for batch in self.attempt.value.held:
                await sink.send(batch)
            stream.commit(entry.timeouts.idle)
            while not batch.done and batch.error is None:
                batch = await stream.next(sink.try_write)
                await sink.send(batch)
            self.error = batch.error
        except ProviderError as error:
            self.error = error
            clear_tracebacks(error)
        finally:
            await stream.aclose()
        if self.error is None:
            self.attempt.served()
            await sink.finish()
        else:
            await self._break(sink, self.error)

    async def _break(self, sink: Sink, error: ProviderError) -> None:
        """Reports `error` to the client in-band, and to health unless it is the caller's mistake."""
        error.target = str(self.attempt.entry.target)
        if error.blame is not Blame.NOBODY and not error.widened_by:
            self.attempt.failed(error)
        await sink.fail(in_band(error))


def in_band(error: ProviderError) -> ProviderError:
    """The error that a client gets mid-stream: a transport failure is wrapped, a provider's own error is kept."""
    if error.source == "provider" and error.provider_status is not None:
        return error
    interrupted = StreamInterrupted(f"the answer broke off: {error.message}", detail=error.detail)
    interrupted.target = error.target
    return interrupted
