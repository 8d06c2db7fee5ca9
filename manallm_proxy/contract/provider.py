"""What the core needs of a provider: the seam between the walk and the wires.

A `Provider` either completes a `Call` (one body) or opens a `Stream` of `StreamBatch`s. Each method raises
a `ProviderError` for a failed attempt and nothing else but a bug; cancelling it closes the
provider's connection.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from attrs import define, field, frozen

from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.targets import Entry

Span = tuple[int, int]
"""Where a value lies in a body: the index of its first byte, and of the first byte after it."""


@define  # not frozen: as `events.RequestEnded`
class Usage:
    """Tokens of one answer. ``reasoning`` is part of ``completion``, ``cached`` part of ``prompt``."""

    prompt: int = 0
    completion: int = 0
    reasoning: int = 0
    cached: int = 0


@define  # not frozen: as `events.RequestEnded`
class RequestSummary:
    """What routing needs to know of a request. ``spans`` tell where the top-level values lie in the body."""

    model: str
    """Empty: the default alias."""
    stream: bool
    wants_usage: bool
    """``stream_options.include_usage``: the client expects the extra usage chunk."""
    needs: frozenset[str]
    """Capabilities: ``tools``, ``vision``, ``embedding``."""
    spans: dict[str, Span]


class Endpoint(Enum):
    """The pipeline's endpoints; ``path`` is below the base URL, and the metrics' label."""

    path: str

    def __init__(self, path: str) -> None:
        self.path = path  # `value` is a property, and ten times as slow

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"


@define  # not frozen: as `events.RequestEnded`
class Call:
    """One client's request, as every target of its chain gets it."""

    endpoint: Endpoint
    summary: RequestSummary
    body: bytes = field(repr=False)
    """The client's JSON object, byte for byte. It holds the prompt: it is never logged."""
    request_id: str


@define  # not frozen: as `events.RequestEnded`
class Answer:
    """One complete, checked answer in OpenAI's shape, its ``model`` already the target."""

    body: bytes = field(repr=False)
    usage: Usage | None = None


@frozen
class StreamBatch:
    """What one read from the provider turned into: whole events only, in the order they came.

    A relayed stream fills ``frames``, a stream that we compose fills ``events``.
    """

    frames: bytes = field(default=b"", repr=False)
    """Complete SSE events as they leave for the client, with their blank lines."""
    events: tuple[bytes, ...] = field(default=(), repr=False)
    """JSON payloads of the events that we compose, without SSE framing."""
    has_content: bool = False
    """Something in here commits: content, a tool call, a finish reason; not a role or an empty delta."""
    done: bool = False
    """The answer is complete; ``[DONE]`` is for the sender to write."""
    error: ProviderError | None = None
    """The provider ended it with an error, after whatever ``frames`` and ``events`` hold."""


TryWrite = Callable[[StreamBatch], bool]
"""Accepts a piece at once, or says False: then nothing has become of it."""


class Stream(Protocol):
    """One streamed answer in flight."""

    @property
    def usage(self) -> Usage | None:
        """Tokens, once the provider has told them."""

    @property
    def commentable(self) -> bool:
        """Whether an SSE comment between events is harmless: after a relayed ``id:`` openai-python reads its blank
        line as an empty event."""

    async def next(self, try_write: TryWrite | None = None) -> StreamBatch:
        """The next piece. Its ``done`` or ``error`` is the last one; ProviderError where the stream breaks.

        A stream that hears of a piece outside of this call's task may `try_write` it there first, and returns only
        what was not accepted, and the last one: so no task is woken for each chunk.
        """

    def commit(self, idle: float) -> None:
        """From here on a silence of `idle` seconds breaks the stream."""

    async def aclose(self) -> None:
        """Ends the provider's work on it, within a second, at any point. Harmless when repeated."""


@frozen
class ModelInfo:
    """A model that a provider says it has. ``capabilities`` None: it does not say."""

    id: str
    created: int = 0
    capabilities: frozenset[str] | None = None
    aliases: tuple[str, ...] = ()
    """Other names under which the provider serves it."""


@frozen
class ModelList:
    """What a provider lists. ``fault``: why that is not all of it, or nothing, in words for the operator."""

    models: tuple[ModelInfo, ...] = ()
    fault: str | None = None


class Provider(Protocol):
    """One configured provider."""

    async def complete(self, call: Call, entry: Entry) -> Answer:
        """The whole answer of `entry`'s target."""

    async def stream(self, call: Call, entry: Entry) -> Stream:
        """An answer of `entry`'s target that has begun: status and headers are in."""

    def first_byte_error(self, seconds: float) -> ProviderError:
        """What it means when a stream says nothing within `seconds`: it may blame the provider or the model."""

    async def probe(self, seconds: float) -> ModelList | None:
        """The provider's models, within `seconds`; None where it is not asked (Google).

        ProviderError where it is not alive: no answer began in time, or it failed. A list that cannot be read is
        one that nobody knows.
        """

    async def close(self) -> None:
        """Gives back connections. Streams in flight have ended by then."""
