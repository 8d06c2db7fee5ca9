"""Gemini through google-genai 3.4 (wire.md D): its client, its streams, and whose fault an exception is.

Importing this module costs 0.3 s and 24 MB: only `generation` does, where a provider of this kind is configured.
The rest of the dialect is in ``gemini_*.py``, which nobody else imports.
"""

from __future__ import annotations

import asyncio
import logging
import re
import warnings
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Final, TypeVar

from attrs import define, field
from google import genai
from google.genai import errors, types

from manallm_proxy.contract.answers import Answer, StreamBatch, Usage
from manallm_proxy.contract.errors import InvalidRequest, ProxyError
from manallm_proxy.contract.provider import Call, Endpoint, TryWrite
from manallm_proxy.contract.provider_errors import (
    BadResponse,
    Disconnected,
    FirstByteTimeout,
    ProviderError,
    ReadTimeout,
)
from manallm_proxy.contract.targets import Entry
from manallm_proxy.http_client.aiohttp_session import Session
from manallm_proxy.http_client.api import secrets_of
from manallm_proxy.http_client.errors import transport_error
from manallm_proxy.providers.classify import ErrorDetails, classify, widened
from manallm_proxy.providers.gemini import reply as gemini_reply
from manallm_proxy.providers.gemini import request as gemini_request
from manallm_proxy.providers.gemini.session_shim import Door, Exchange
from manallm_proxy.providers.scrub import scrubbed

BASE_URL: Final = "https://generativelanguage.googleapis.com"
_VERSIONED: Final = re.compile(r"(.*)/(v\d+\w*)", re.ASCII)
_NOT_THE_SHAPE: Final = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What the SDK raises over a reply that is not Gemini's: it parses without a check of its own."""

_T = TypeVar("_T")


class GeminiProvider:
    """One provider of kind ``google``. It owns `session` and closes it."""

    def __init__(
        self,
        name: str,
        api_key: str,
        base_url: str | None,
        headers: Mapping[str, str],
        session: Session,
        *,
        extra_retryable_statuses: frozenset[int] = frozenset(),
    ) -> None:
        """`base_url` may end in an API version; None is Google's. ValueError where `api_key` is empty."""
        if not api_key.strip():
            raise ValueError(f"{name}: a provider of kind google needs an api_key")  # the SDK would look for another
        _quieten()
        self.name = name
        self._key = api_key.strip()
        self._secrets = secrets_of(self._key, headers)
        self._session = session
        self._extra_retryable_statuses = extra_retryable_statuses
        url = (base_url or BASE_URL).rstrip("/")
        versioned = _VERSIONED.fullmatch(url)
        self._client = genai.Client(
            api_key=self._key,
            vertexai=False,  # None would leave it to the environment
            http_options=types.HttpOptions(
                base_url=versioned[1] if versioned else url,
                api_version=versioned[2] if versioned else None,
                headers=dict(headers),
                retry_options=types.HttpRetryOptions(attempts=1),  # without it a reset costs up to 10 s of sleep
                aiohttp_client=Door(session),  # type: ignore[arg-type]  # it stands in for one
                async_client_args={"ssl": True},  # that is the session's own; else certificates are loaded for it
            ),
        )
        self._models = self._client.aio.models

    async def complete(self, call: Call, entry: Entry) -> Answer:
        """See `upstream.Upstream`. The SDK gives a body only when it is whole: all of it must be in by ``first_byte``.

        Raises InvalidRequest and Unsupported as well, and whatever is a bug.
        """
        if call.endpoint is Endpoint.EMBEDDINGS:
            return await self._embed(call, entry)
        asked = gemini_request.generation(call, entry)
        asking = self._models.generate_content(model=asked.model, contents=asked.contents, config=asked.config)
        reader = gemini_reply.Reader()
        choices = reader.whole(await self._ask(asking, call, entry))
        return Answer(usage=reader.usage, choices=tuple(choices))

    async def _embed(self, call: Call, entry: Entry) -> Answer:
        asked = gemini_request.embedding(call, entry)
        asking = self._models.embed_content(model=asked.model, contents=[*asked.contents], config=asked.config)
        reply = await self._ask(asking, call, entry)
        vectors = gemini_reply.vectors(reply, len(asked.contents), to_unit=asked.is_cut)
        usage = gemini_reply.embedding_usage(reply)
        return Answer(usage=usage, vectors=vectors, dimensions=len(vectors[0]))

    async def _ask(self, asking: Awaitable[_T], call: Call, entry: Entry) -> _T:
        exchange = Exchange(call.request_id, entry.timeouts.connect)
        seconds = entry.timeouts.first_byte
        try:
            async with asyncio.timeout(seconds) as limit:
                with exchange.under_way():
                    return await asking
        except Exception as error:
            if exchange.response is not None:
                exchange.response.close()  # the SDK leaves one that it cannot read, such as a 101, to the collector
            ours = self.first_byte_error(seconds) if limit.expired() else self.failed(error, exchange)
            if ours is None:
                raise
            raise ours from None

    async def stream(self, call: Call, entry: Entry) -> GeminiStream:
        """See `upstream.Upstream`. Nothing is sent yet: the SDK does that when the first chunk is pulled."""
        asked = gemini_request.generation(call, entry)
        chunks = await self._models.generate_content_stream(
            model=asked.model, contents=asked.contents, config=asked.config
        )
        exchange = Exchange(call.request_id, entry.timeouts.connect)
        return GeminiStream(self, exchange, chunks)

    def first_byte_error(self, seconds: float) -> ProviderError:
        return FirstByteTimeout(f"{self.name}: nothing said within {seconds:g} s")

    async def probe(self, seconds: float) -> None:
        """Google is not asked: each listing counts toward our limits."""

    async def close(self) -> None:
        await self._client.aio.aclose()
        self._client.close()
        await self._session.close()

    def failed(self, error: Exception, exchange: Exchange) -> ProxyError | None:
        """What `error`, raised by the SDK, means; None where it is a bug.

        Until there is a response, what the SDK cannot put into words is the caller's. From then on, what it
        cannot read is the provider's.
        """
        response = exchange.response
        if isinstance(error, errors.APIError):
            return self._told(gemini_reply.failure(error, response.headers if response is not None else {}))
        transport = transport_error(error, self.name)
        if transport is not None:
            return transport
        if response is None:
            return _unsayable(error)
        if not isinstance(error, _NOT_THE_SHAPE):
            return None
        if response.status != 200:
            return self._told(classify(response.status, response.headers, ErrorDetails()))
        return BadResponse(f"{self.name}: its answer is not what Gemini's API promises", detail="not Gemini's JSON")

    def _told(self, error: ProviderError) -> ProviderError:
        """`error` as configured, and without our secrets, should the provider have quoted it."""
        return scrubbed(widened(error, self.name, self._extra_retryable_statuses), *self._secrets)


def _quieten() -> None:
    """The SDK has a log line for every request, and a warning for every word that Google adds to its API."""
    logging.getLogger("google_genai").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r".* is not a valid \w+$", UserWarning, r"google\.genai\.")


def _unsayable(error: Exception) -> ProxyError | None:
    """The SDK checks a request once more while it writes it."""
    if isinstance(error, RecursionError):
        return InvalidRequest("the body is nested too deeply")
    if isinstance(error, ValueError):
        return InvalidRequest("Gemini's API cannot be told this request")
    return None


@define(eq=False)
class GeminiStream:
    """One streamed answer: the SDK's chunks in, deltas out."""

    _upstream: GeminiProvider
    _exchange: Exchange
    _chunks: AsyncIterator[types.GenerateContentResponse]
    _reader: gemini_reply.Reader = field(factory=gemini_reply.Reader)
    _idle: float | None = None
    _waiting: asyncio.Timeout | None = None
    """Around a chunk that somebody waits for."""
    _begun: bool = False
    _closed: bool = False

    @property
    def usage(self) -> Usage | None:
        return self._reader.usage

    async def next(self, try_write: TryWrite | None = None) -> StreamBatch:
        """See `upstream.Stream`."""
        try:
            async with asyncio.timeout(self._idle) as self._waiting:
                with self._exchange.under_way():
                    chunk = await anext(self._chunks)
        except StopAsyncIteration:
            return self._end()
        except Exception as error:
            ours = self._broken(error)
            if ours is None:
                raise
            raise ours from None
        finally:
            self._waiting = None
        self._begun = True
        return self._written(chunk)

    def _broken(self, error: Exception) -> ProxyError | None:
        if self._closed:
            return Disconnected(f"{self._upstream.name}: closed by us", detail="closed")
        if self._waiting is not None and self._waiting.expired():
            return ReadTimeout(f"{self._upstream.name}: fell silent for {self._idle:g} s")
        return self._upstream.failed(error, self._exchange)

    def _written(self, chunk: types.GenerateContentResponse) -> StreamBatch:
        try:
            deltas = self._reader.deltas(chunk)
        except ProviderError as error:
            return StreamBatch(error=error)
        kept = tuple(d for d in deltas if d.has_content or d.logprobs is not None)
        return StreamBatch(deltas=kept, has_content=any(d.has_content for d in kept))

    def _end(self) -> StreamBatch:
        """A clean end proves nothing (wire.md E.4): it takes a finish reason. No chunk at all is an empty answer."""
        if self._begun and not self._reader.is_complete:
            return StreamBatch(error=Disconnected("Gemini stopped in mid answer", detail="no finish reason"))
        return StreamBatch(done=True)

    def commit(self, idle: float) -> None:
        self._idle = idle

    async def aclose(self) -> None:
        """Closes the response: closing the SDK's generator would leave its connection open (wire.md D.1)."""
        if self._closed:
            return
        self._closed = True
        if self._exchange.response is not None:
            self._exchange.response.close()
        if self._waiting is not None:  # somebody is inside `next`, perhaps before there is a response
            self._waiting.reschedule(asyncio.get_running_loop().time())
