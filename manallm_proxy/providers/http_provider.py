"""HTTP to one provider: sends the requests that its wire builds, and passes the responses to the wire.

Each provider has its own connections, and so its own TLS and proxy. The wire does no I/O; this file knows no dialect.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from attrs import evolve, field

from manallm_proxy.contract.answers import Answer, AnswerLimits, StreamBatch, Usage
from manallm_proxy.contract.events import Observer, UsageRefused
from manallm_proxy.contract.provider import Call, Endpoint, ModelList, TryWrite
from manallm_proxy.contract.provider_errors import (
    FirstByteTimeout,
    ProbeTimeout,
    ProviderError,
    ProxyRefused,
    ReadTimeout,
)
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry, Timeouts
from manallm_proxy.http_client.aiohttp_session import SessionConnections
from manallm_proxy.http_client.api import Address, Connections, Response
from manallm_proxy.http_client.pool import Pool
from manallm_proxy.openai.deferred_free import free_later
from manallm_proxy.openai.large import ANSWER_ELEMENTS, is_large, offload
from manallm_proxy.providers.answer_bounds import checked_answer, refuse_too_much, too_long
from manallm_proxy.providers.classify import as_retryable
from manallm_proxy.providers.gathering import Parts, gather, joined
from manallm_proxy.providers.max_tokens import cut_to
from manallm_proxy.providers.mending.forms import Forms
from manallm_proxy.providers.message_masking import compared, is_comparable, set_provider_message
from manallm_proxy.providers.model_list import CUT_SHORT, LIST_LIMIT, TOO_LONG
from manallm_proxy.providers.pieces import UNCOUNTED, Pieces, fits
from manallm_proxy.providers.scrub import redact_secrets
from manallm_proxy.providers.wire import Request, Translator, Wire

_TEXTS: Final = (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.COUNT_TOKENS)
ERROR_LIMIT: Final = 64 * 1024
_LONG_REFUSAL: Final = 8 * 1024
"""Above this many bytes, it takes a millisecond or more to find what a refusal is about."""
_LONG_CALL: Final = 32 * 1024
"""And above so many of a request, whether what was refused of it is refused of all: 250 KB take 5 ms."""
ERROR_TIMEOUT: Final = 5.0
"""Seconds for the body of a refusal."""
_CONNECTS: Final = 0.9
"""The part of a probe's time that its connection may take."""
_EVENT_BYTES: Final = 8 * 1024
"""Bytes of an event that is translated on the loop, beside those of the read that ends it: two thousand tool calls in
one take 20 ms."""


def connections_to(address: Address) -> Connections:
    """Our own connections, or aiohttp's if there is a forward proxy, which ours do not support."""
    return SessionConnections(address) if address.proxy else Pool(address)


class Details(Protocol):
    """Details that a model list lacks, and that a server reports per model."""

    async def added(self, listed: ModelList, seconds: float) -> ModelList:
        """`listed` with what is known of its models within `seconds`. Never raises."""

    async def close(self) -> None: ...


@define
class HttpProvider:
    """One provider over HTTP."""

    address: Address
    wire: Wire
    extra_retryable_statuses: frozenset[int] = frozenset()
    observe: Observer = lambda event: None
    limits: AnswerLimits = AnswerLimits()
    details: Details | None = None
    _connections: Connections = field(repr=False)

    @_connections.default
    def _new_connections(self) -> Connections:
        return connections_to(self.address)

    async def complete(self, call: Call, entry: Entry) -> Answer:
        """A whole, checked answer: the first byte within ``first_byte``, then no silence longer than ``idle``."""
        times, name = entry.timeouts, self.address.name
        parts: Parts = []
        until = asyncio.get_running_loop().time() + times.first_byte
        try:
            response = await self._post(call, entry, until)
            whole = await gather(response, parts, self._bound(call)[0], until, times.idle)
        except TimeoutError:
            if parts:
                raise ReadTimeout(f"{name}: fell silent for {times.idle:g} s") from None
            raise self.first_byte_error(times.first_byte) from None
        if not whole:
            raise too_long(*self._bound(call))
        try:
            return await self._answer(call, entry, [joined(parts)], response.content_type)
        except ProviderError as error:
            raise self.redacted(self.with_listed_status(error), compared(call)) from None

    async def _answer(self, call: Call, entry: Entry, body: list[bytes], content_type: str) -> Answer:
        """Decodes the answer, in a thread if it is large. `body`: a list of one, emptied to free it early."""
        if not is_large(body[0], ANSWER_ELEMENTS):
            answer = self.wire.answer(call, entry, body[0], content_type)
            return checked_answer(answer, self.limits) if answer.choices else answer
        answer = await offload(True, self._large_answer, call, entry, body, content_type)
        answer.is_large = True
        return answer

    def _large_answer(self, call: Call, entry: Entry, whole: list[bytes], content_type: str) -> Answer:
        body = whole.pop()
        free_later(body)
        if not call.endpoint.is_opaque or "json" in content_type:
            refuse_too_much(body, self.limits)
        return checked_answer(self.wire.answer(call, entry, body, content_type), self.limits)

    async def stream(self, call: Call, entry: Entry, until: float | None = None) -> HttpStream:
        """See `provider.Provider`."""
        response = await self._post(call, entry, until)
        translator = self.wire.translator(call, entry, response.content_type, self.limits)
        asked = call if is_comparable(call) else None
        return HttpStream(self, response, translator, asked, getattr(translator, "relayed", None))

    def first_byte_error(self, seconds: float) -> ProviderError:
        return FirstByteTimeout(f"{self.address.name}: nothing said within {seconds:g} s")

    async def probe(self, seconds: float) -> ModelList | None:
        """Any status below 500 is alive; a 200 should hold the list of models, but any other body is no failure."""
        path = self.wire.probe_path
        if path is None:
            return None
        response: Response | None = None
        parts: Parts = []
        until = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout(seconds):
                connect = min(Timeouts().connect, _CONNECTS * seconds)
                response = await self._connections.request("GET", path, request_id=None, connect=connect)
                if response.status >= 500:
                    refusal = self.wire.failure(response.status, response.headers, await self._refusal(response, None))
                    raise redact_secrets(refusal, *self.address.secrets)
                if response.status != 200:
                    response.close()
                    return ModelList(status=response.status)
                if not await gather(response, parts, LIST_LIMIT):
                    return ModelList(fault=TOO_LONG)
        except TimeoutError:
            if response is None:
                raise ProbeTimeout(f"{self.address.name}: its probe got no answer in {seconds:g} s") from None
            if response.status >= 500:
                raise self.wire.failure(response.status, response.headers, b"") from None
            return ModelList(fault=CUT_SHORT)
        except ProviderError:
            if response is None or response.status != 200:
                raise
            return ModelList(fault=CUT_SHORT)
        body = joined(parts)
        listed = await offload(is_large(body), self.wire.listed, body)
        if self.details is None:
            return listed
        return await self.details.added(listed, until - asyncio.get_running_loop().time())

    async def close(self) -> None:
        if self.details is not None:
            await self.details.close()
        await self._connections.close()

    async def _post(self, call: Call, entry: Entry, until: float | None) -> Response:
        """The response once its headers have arrived, by loop time `until`. Raises ProviderError unless it is a 200."""
        if call.most is not None:
            call = await offload(call.is_large, cut_to, call, call.most)
        write = self.wire.request
        slow = call.is_large and not self.wire.splices(call)
        request = await offload(True, write, call, entry) if slow else write(call, entry)
        response = await self._send(request, call, entry, until)
        if response.status == 200:
            return response
        if response.status == 407:
            response.close()
            raise ProxyRefused(self.address.name)
        forms, body = Forms(self.wire, call, entry), await self._refusal(response, until)
        await offload(call.is_large, forms.refused, request)
        del request  # which may be long
        large = call.is_large or len(call.body) > _LONG_CALL
        while again := await offload(large or len(body) > _LONG_REFUSAL, forms.next, response.status, body):
            response = await self._send(again, call, entry, until)
            if response.status == 200:
                if forms.answered():
                    self.observe(UsageRefused(entry.target.provider, entry.target.model))
                return response
            body = await self._refusal(response, until)
        refusal = self.wire.failure(response.status, response.headers, body)
        raise self.redacted(self.with_listed_status(refusal), compared(call))

    def with_listed_status(self, error: ProviderError) -> ProviderError:
        """`error`, made retryable if its status is listed under ``extra_retryable_statuses``."""
        return as_retryable(error, self.address.name, self.extra_retryable_statuses)

    def redacted(self, error: ProviderError, asked: bytes) -> ProviderError:
        """`error` without our keys, and with the provider's message masked for the log. `asked`: see
        `message_masking.compared`."""
        error = redact_secrets(error, *self.address.secrets)
        set_provider_message(error, asked)
        return error

    def _send(self, request: Request, call: Call, entry: Entry, until: float | None) -> Awaitable[Response]:
        """The response once its status and headers have arrived, whatever the status."""
        return self._connections.request(
            "POST",
            request.path,
            request_id=call.request_id,
            body=request.content,
            content_type=request.content_type,
            headers=request.headers,
            connect=entry.timeouts.connect,
            until=until,
            trace=call.trace,
        )

    async def _refusal(self, response: Response, until: float | None) -> bytes:
        """As much of a refusal's body as arrives in time: the status alone is enough for an error."""
        parts: Parts = []
        limit = asyncio.get_running_loop().time() + ERROR_TIMEOUT
        with contextlib.suppress(ProviderError, TimeoutError):
            await gather(response, parts, ERROR_LIMIT, limit if until is None else min(limit, until))
        return joined(parts)[:ERROR_LIMIT]

    def _bound(self, call: Call) -> tuple[int, str]:
        """Max bytes of a whole answer, and the configuration key that sets it."""
        return (self.limits.text, "text") if call.endpoint in _TEXTS else (self.limits.body, "body")


@define
class HttpStream:
    """One streamed answer over HTTP."""

    _provider: HttpProvider
    _response: Response
    _translator: Translator
    _asked: Call | None = field(repr=False)
    """What was asked, unless messages cannot be compared with it, see `message_masking`."""
    _relayed: Callable[[bytes], bytes] | None
    """See `wire.Relays`."""
    _idle: float | None = None
    """Max seconds of silence; None before the commit."""
    _piece: StreamBatch | None = None
    """A batch that was translated, but not consumed yet."""
    _pieces: Pieces | None = None
    """Data that was read, but not translated yet, once there was too much of it for one piece."""
    _sink: TryWrite | None = None
    """The latest `try_write`."""
    _held: int = 0
    """Upper bound of the bytes that the translator holds."""
    _complete: bool = False
    _closed: bool = False

    @property
    def usage(self) -> Usage | None:
        return self._translator.usage

    async def next(self, try_write: TryWrite | None = None, until: float | None = None) -> StreamBatch:
        """See `provider.Stream`."""
        if self._pieces:
            return await self._translate(await self._pieces.next())
        self._sink = try_write
        try:
            data = await self._response.read(self._try_write if try_write is not None else None, until, self._idle)
        except TimeoutError:
            if self._idle is None:
                raise
            raise ReadTimeout(f"{self._provider.address.name}: fell silent for {self._idle:g} s") from None
        batch, self._piece = self._piece, None
        if batch is not None:
            return batch
        if fits(data):
            return self._translated(data) if self._held <= _EVENT_BYTES else await self._translate(data)
        if self._pieces is None:
            self._pieces = Pieces()
        self._pieces.add(data)
        return await self._translate(await self._pieces.next())

    def _try_write(self, data: bytes) -> bool:
        relayed, sink = self._relayed, self._sink
        if relayed is not None and sink is not None and (frames := relayed(data)) and sink(frames):
            return True
        if len(data) > UNCOUNTED and not fits(data):
            return False
        if self._held > _EVENT_BYTES and self._translator.held > _EVENT_BYTES:
            return False
        batch = self._translator.feed(data)
        if batch.done or batch.error is not None:
            self._piece = self._noted(batch, data)
            return False
        self._held = len(data) if batch.frames or batch.deltas else self._held + len(data)
        if self._sink is not None and self._sink(batch):
            return True
        self._piece = batch
        return False

    async def _translate(self, data: bytes) -> StreamBatch:
        """In a thread where it may end a large event."""
        if self._translator.held <= _EVENT_BYTES or (data and self._translator.is_open(data)):
            return self._translated(data)
        return evolve(await offload(True, self._translated, data), is_large=True)

    def _translated(self, data: bytes) -> StreamBatch:
        return self._noted(self._translator.feed(data) if data else self._translator.close(), data)

    def _noted(self, batch: StreamBatch, data: bytes) -> StreamBatch:
        """Updates the state by `batch`, which was made from `data`, and returns it."""
        self._held = len(data) if batch.frames or batch.deltas else self._held + len(data)
        self._complete = batch.done
        if batch.error is not None:
            return self._with_error(batch, batch.error)
        return batch

    def _with_error(self, batch: StreamBatch, error: ProviderError) -> StreamBatch:
        """`batch` with `error` redacted; before the commit it may become retryable, afterwards the client gets it."""
        error = self._provider.with_listed_status(error) if self._idle is None else error
        return evolve(batch, error=self._provider.redacted(error, compared(self._asked)))

    def commit(self, idle: float) -> None:
        """See `provider.Stream`. Only time spent waiting for the provider counts, not for the client."""
        self._idle = idle

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._sink = None  # it refers back to this stream
        if self._complete:
            self._response.release()
        else:
            self._response.close()
