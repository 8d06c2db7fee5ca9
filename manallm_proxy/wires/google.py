"""Gemini through google-genai 3.4 (wire.md D): its client, its streams, and whose fault an exception is.

The SDK speaks HTTP by itself, through an aiohttp session that it is given. What it gets is a `_Door` to our
session, since its own way with one does not suit a proxy: it follows redirects with prompt and key, waits for
a connection without limit, brings its own TLS settings, and keeps the response to itself, so that a stream
that nobody reads any more could not be ended.

Importing this module costs 0.3 s and 24 MB: only `snapshot` does, where a provider of this kind is configured.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import aiohttp
from attrs import define, field
from google import genai
from google.genai import errors, types

from manallm_proxy.chain import Entry
from manallm_proxy.compose import Composer, embeddings_body
from manallm_proxy.errors import (
    BadResponse,
    Disconnected,
    FirstByteTimeout,
    InvalidRequest,
    ProviderError,
    ReadTimeout,
    RetryableStatus,
    UpstreamSaid,
)
from manallm_proxy.schema import Usage
from manallm_proxy.transport import transport_error
from manallm_proxy.upstream import Answer, Call, Endpoint, Piece
from manallm_proxy.wires import gemini_reply, gemini_request
from manallm_proxy.wires.classify import classify
from manallm_proxy.wires.gemini_reply import Reader

BASE_URL: Final = "https://generativelanguage.googleapis.com"
_VERSIONED: Final = re.compile(r"(.*)/(v\d+\w*)", re.ASCII)
_TRIES_LIMIT: Final = 100
"""More dead pooled connections than this in a row are not dead connections."""
_NOT_THE_SHAPE: Final = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What the SDK raises over a reply that is not Gemini's; it parses without a check of its own."""

_T = TypeVar("_T")


@define(eq=False)
class _Exchange:
    """One request of ours on its way through the SDK, and what only the session knows of it."""

    request_id: str
    connect: float
    """Seconds for name look-up, TCP and TLS."""
    pooled: bool = False
    """Whether it got a pooled connection; noted by the session's tracer."""
    response: aiohttp.ClientResponse | None = field(default=None, repr=False)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """While the SDK runs within, the door knows what it sends."""
        token = _EXCHANGE.set(self)
        try:
            yield
        finally:
            _EXCHANGE.reset(token)


_EXCHANGE: Final[ContextVar[_Exchange]] = ContextVar("exchange")
"""The SDK hands nothing of ours through to its session, but it calls it from the task that asked."""


@define(eq=False)
class _Door:
    """The part of ClientSession that the SDK uses."""

    _session: aiohttp.ClientSession
    _proxy: str | None = None

    @property
    def __class__(self) -> type:  # type: ignore[override]  # the SDK insists on an instance; subclassing is deprecated
        return aiohttp.ClientSession

    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str], data: bytes | None, **_: Any
    ) -> aiohttp.ClientResponse:
        """Sends it our way. A pooled connection that turns out dead costs another try, not the attempt."""
        exchange = _EXCHANGE.get()
        sent = {**headers, "Accept-Encoding": "identity", "X-Request-Id": exchange.request_id}
        limits = aiohttp.ClientTimeout(total=None, connect=exchange.connect, sock_connect=exchange.connect)
        for tries in range(_TRIES_LIMIT):
            exchange.pooled = False
            try:
                exchange.response = await self._session.request(
                    method,
                    url,
                    headers=sent,
                    data=data,
                    timeout=limits,
                    allow_redirects=False,
                    proxy=self._proxy,
                    trace_request_ctx=exchange,
                )
                return exchange.response
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if tries == _TRIES_LIMIT - 1 or not (exchange.pooled and _was_stale(error)):
                    raise
        raise AssertionError("the last try returns or raises")


def _was_stale(error: BaseException) -> bool:
    """Whether the connection was dead before a byte of an answer was read."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # else: the raw head that had begun
    return not isinstance(error, aiohttp.ClientConnectorError | TimeoutError)


class GoogleUpstream:
    """One provider of kind ``google``. It owns `session`, as `new_session` makes it, and closes it."""

    def __init__(
        self,
        name: str,
        api_key: str,
        base_url: str | None,
        headers: Mapping[str, str],
        session: aiohttp.ClientSession,
        *,
        proxy: str | None = None,
        extra_retryable_statuses: frozenset[int] = frozenset(),
    ) -> None:
        """`base_url` may end in an API version, None is Google's. ValueError where `api_key` is empty."""
        logging.getLogger("google_genai").setLevel(logging.WARNING)  # it logs a line a request
        self.name = name
        self._key = api_key
        self._session = session
        self._extra_retryable_statuses = extra_retryable_statuses
        url = (base_url or BASE_URL).rstrip("/")
        versioned = _VERSIONED.fullmatch(url)
        self._client = genai.Client(
            api_key=api_key,
            vertexai=False,  # else the environment may decide
            http_options=types.HttpOptions(
                base_url=versioned[1] if versioned else url,
                api_version=versioned[2] if versioned else None,
                headers=dict(headers),
                retry_options=types.HttpRetryOptions(attempts=1),  # without it a reset costs up to 10 s of sleep
                aiohttp_client=_Door(session, proxy),  # type: ignore[arg-type]  # see there
                async_client_args={"ssl": True},  # nothing is loaded: TLS is the session's
            ),
        )
        self._models = self._client.aio.models

    async def complete(self, call: Call, entry: Entry) -> Answer:
        """See `upstream.Upstream`. The SDK reads the body in one go, so all of it counts as its first byte."""
        if call.endpoint is Endpoint.EMBEDDINGS:
            return await self._embed(call, entry)
        asked = gemini_request.generation(call, entry)
        reader = Reader()
        reply = await self._ask(
            self._models.generate_content(model=asked.model, contents=asked.contents, config=asked.config), call, entry
        )
        said = reader.deltas(reply)
        if not said or not reader.is_complete:
            raise BadResponse("Gemini's answer is incomplete", detail="no finish reason" if said else "no candidates")
        return Answer(Composer(call, entry.target).body(said, reader.usage or Usage()), reader.usage)

    async def _embed(self, call: Call, entry: Entry) -> Answer:
        asked = gemini_request.embedding(call, entry)
        reply = await self._ask(
            self._models.embed_content(model=asked.model, contents=list(asked.contents), config=asked.config),
            call,
            entry,
        )
        vectors = gemini_reply.vectors(reply, len(asked.contents), to_unit=asked.is_cut)
        usage = gemini_reply.embedded_tokens(reply)
        try:
            body = embeddings_body(vectors, entry.target, usage, as_base64=asked.as_base64)
        except OverflowError:
            raise BadResponse("Gemini gave numbers that are no float32", detail="not float32") from None
        return Answer(body, usage)

    async def _ask(self, asking: Awaitable[_T], call: Call, entry: Entry) -> _T:
        exchange = _Exchange(call.request_id, entry.timeouts.connect)
        seconds = entry.timeouts.first_byte
        try:
            async with asyncio.timeout(seconds) as limit:
                with exchange.under_way():
                    return await asking
        except Exception as error:
            if limit.expired() and isinstance(error, TimeoutError):
                raise self.first_byte_error(seconds) from None
            raise self.failed(error, exchange) from error

    async def stream(self, call: Call, entry: Entry) -> GoogleStream:
        """See `upstream.Upstream`. Nothing is sent yet: the SDK does so when the first chunk is pulled."""
        asked = gemini_request.generation(call, entry)
        exchange = _Exchange(call.request_id, entry.timeouts.connect)
        chunks = await self._models.generate_content_stream(
            model=asked.model, contents=asked.contents, config=asked.config
        )
        return GoogleStream(self, exchange, chunks, Composer(call, entry.target))

    def first_byte_error(self, seconds: float) -> ProviderError:
        return FirstByteTimeout(f"{self.name}: nothing said within {seconds:g} s")

    async def probe(self) -> None:
        """Google is not asked (contract, section 6)."""

    async def close(self) -> None:
        await self._client.aio.aclose()
        self._client.close()
        await self._session.close()

    def failed(self, error: Exception, exchange: _Exchange) -> Exception:
        """Ours for what the SDK raised; `error` itself where it is a bug.

        Before there is a response, what the SDK cannot shape is the caller's; behind it, what it cannot parse
        is the provider's.
        """
        if isinstance(error, errors.APIError):
            response = exchange.response
            return self._told(gemini_reply.failure(error, response.headers if response is not None else {}))
        transport = transport_error(error, self.name)
        if transport is not None:
            return transport
        if not isinstance(error, _NOT_THE_SHAPE):
            return error
        if exchange.response is None:
            return _unsayable(error)
        if exchange.response.status != 200:
            return self._told(classify(exchange.response.status, exchange.response.headers, ""))
        return BadResponse(f"{self.name}: its answer is not what Gemini's API promises", detail="not Gemini's JSON")

    def _told(self, error: ProviderError) -> ProviderError:
        """`error` as configured, without our key, should the provider have quoted it."""
        status = error.provider_status
        if isinstance(error, UpstreamSaid) and status in self._extra_retryable_statuses:
            error = RetryableStatus(
                f"{self.name} answered {status}", provider_status=status, retry_after=error.retry_after
            )
        if self._key in error.message:
            error.message = error.message.replace(self._key, "[redacted]")
            error.args = (error.message,)
        return error


def _unsayable(error: Exception) -> Exception:
    """The SDK checks once more while it writes the request."""
    if isinstance(error, RecursionError):
        return InvalidRequest("the body is nested too deeply")
    if isinstance(error, ValueError):
        return InvalidRequest("Gemini's API cannot be told this request")
    return error


@define(eq=False)
class GoogleStream:
    """One streamed answer. `chunks` is the SDK's."""

    _upstream: GoogleUpstream
    _exchange: _Exchange
    _chunks: AsyncIterator[types.GenerateContentResponse]
    _composer: Composer
    commentable: bool = True
    _reader: Reader = field(factory=Reader)
    _idle: float | None = None
    _pull: asyncio.Timeout | None = None
    """Around a chunk that is being waited for."""
    _begun: bool = False
    _closed: bool = False

    @property
    def usage(self) -> Usage | None:
        return self._reader.usage

    async def next(self) -> Piece:
        """See `upstream.Stream`."""
        try:
            async with asyncio.timeout(self._idle) as self._pull:
                with self._exchange.under_way():
                    chunk = await anext(self._chunks)
        except StopAsyncIteration:
            return self._end()
        except Exception as error:
            raise self._broken(error) from error
        finally:
            pull, self._pull = self._pull, None
        self._begun = True
        return self._written(chunk)

    def _broken(self, error: Exception) -> Exception:
        if self._closed:
            return Disconnected(f"{self._upstream.name}: closed by us", detail="closed")
        if self._pull is not None and self._pull.expired():
            return ReadTimeout(f"{self._upstream.name}: fell silent for {self._idle:g} s")
        return self._upstream.failed(error, self._exchange)

    def _written(self, chunk: types.GenerateContentResponse) -> Piece:
        try:
            deltas = self._reader.deltas(chunk)
        except ProviderError as error:
            return Piece(error=error)
        events = tuple(self._composer.chunk(d) for d in deltas if d.says or d.logprobs is not None)
        return Piece(events=events, says=any(d.says for d in deltas))

    def _end(self) -> Piece:
        """A clean end says nothing by itself; a stream without any chunk is an empty answer."""
        if self._begun and not self._reader.is_complete:
            return Piece(error=Disconnected("Gemini stopped in mid answer", detail="no finish reason"))
        usage = self._reader.usage
        last = self._composer.usage_chunk(usage) if usage is not None else None
        return Piece(events=() if last is None else (last,), done=True)

    def commit(self, idle: float) -> None:
        self._idle = idle

    async def aclose(self) -> None:
        """Closing the SDK's generator would leave the connection open (wire.md D.1): the response is what ends it."""
        if self._closed:
            return
        self._closed = True
        if self._exchange.response is not None:
            self._exchange.response.close()
        if self._pull is not None:  # somebody waits in `next`, perhaps before there is a response
            self._pull.reschedule(asyncio.get_running_loop().time())
