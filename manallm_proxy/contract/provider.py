"""What the core needs of a provider: the interface between the walk and the dialects.

A `Provider` either completes a `Call` or opens a `Stream`. Each method raises a `ProviderError` for a failed
attempt; any other exception is a bug. Cancelling it closes the provider's connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, Protocol

from attrs import field

from manallm_proxy.contract.answers import Answer, StreamBatch, Usage
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.targets import Entry
from manallm_proxy.contract.trace import TraceHeaders

VISION: Final = "vision"
_NONE: Final[Mapping[str, Any]] = MappingProxyType({})
_DATA_URI: Final = re.compile(rb"data:image/")
_ANTHROPIC_DATA: Final = re.compile(rb'"data"\s*:\s*"')
"""What the bytes of a picture begin with; they end with the string that they are in."""
_SEARCHED: Final = 2**20
"""Bytes of text that are searched for pictures, a millisecond's worth: more text exceeds the window of any model."""
_LONGEST_NUMBER: Final = 18
"""Max digits of a number of tokens that is read."""

Span = tuple[int, int]
"""Position of a value in a body: the index of its first byte, and of the first byte after it."""


@define  # not frozen: as `answers.Usage`
class RequestSummary:
    """What routing needs to know about a request. ``spans``: positions of the top-level values in the body."""

    model: str
    """Empty: the default alias."""
    stream: bool
    wants_usage: bool
    """``stream_options.include_usage``: the client expects the extra usage chunk."""
    _needs: frozenset[str]
    spans: dict[str, Span]
    _has_pictures: Callable[[], bool] | None = field(default=None, repr=False, eq=False)
    """Whether it needs ``vision``; None: that is in ``_needs``. A long body is only looked through if it matters."""

    @property
    def needs(self) -> frozenset[str]:
        """Required capabilities: ``tools``, ``vision``, ``embedding``."""
        if self._has_pictures is not None:
            self._needs |= {VISION} if self._has_pictures() else frozenset()
            self._has_pictures = None
        return self._needs

    def forget(self) -> None:
        """Drops the reference to the body, once `needs` is no longer asked for."""
        self._has_pictures = None

    def needs_beside(self, capabilities: frozenset[str]) -> frozenset[str]:
        """The needs that a target with these `capabilities` does not meet."""
        return (self._needs if VISION in capabilities else self.needs) - capabilities


class Endpoint(Enum):
    """An endpoint of OpenAI's API, and so the format of a call. ``path`` is below the provider's base URL."""

    path: str
    is_opaque: bool
    """Bodies are relayed and never translated, so only a provider that speaks OpenAI's format can serve it."""

    def __init__(self, path: str, is_opaque: bool = False) -> None:
        self.path = path  # `value` is a property, which is ten times as slow
        self.is_opaque = is_opaque

    __hash__ = object.__hash__  # its own is Python's code, and each look into a table would run it

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    SPEECH = "audio/speech", True
    TRANSCRIPTIONS = "audio/transcriptions", True
    TRANSLATIONS = "audio/translations", True
    IMAGES = "images/generations", True
    IMAGE_EDITS = "images/edits", True
    RERANK = "rerank", True
    MODERATIONS = "moderations", True
    RESPONSES = "responses"
    MESSAGES = "messages"
    """Anthropic's. As `RESPONSES` and `COUNT_TOKENS`, only for a provider that speaks it itself."""
    COUNT_TOKENS = "messages/count_tokens"


@define  # not frozen: as `answers.Usage`
class Call:
    """One client request in the format of ``endpoint``, as every target of its chain gets it."""

    endpoint: Endpoint
    summary: RequestSummary
    body: bytes = field(repr=False)
    """A JSON object, or a form if ``content_type`` says so; the client's own bytes if its door speaks this format. It
    holds the prompt: never log it."""
    request_id: str
    denied: frozenset[str] = frozenset()
    """What can be done without and the target lacks, says its provider's list (the capability ``thinking``) or its own
    refusal of this request (the field ``stream_options``)."""
    waits_for_words: bool = False
    """Whether a finish reason without any content does not commit the stream (``fallback_on: [empty]``)."""
    advice: str = ""
    """For loopback, which answers in place of a model: why no model could, in words for the operator."""
    relays: bool = True
    """Whether the door relays a provider's own bytes in this format; if not, the provider reads them into deltas."""
    notes: tuple[str, ...] = ()
    """What the door left out because it has no translation: for the log, never client text."""
    is_large: bool = False
    """Whether translating it takes so long that it would delay other requests: then it is done in a thread."""
    remarks: list[str] = field(factory=list)
    """What the dialects of the providers that were tried left out: one list for all forms of a call."""
    names: dict[str, str] = field(factory=dict, repr=False)
    """Names of tools as a provider got them -> as the request has them, where these are not the same."""
    content_type: str = "application/json"
    ollama: Mapping[str, Any] = field(factory=dict, repr=False)
    """Fields that override those of ``body`` for a provider of kind ollama. No other gets them: strict servers refuse
    unknown fields. Long ``messages`` are JSON, as bytes."""
    answer: Answer | None = field(default=None, repr=False)
    """The door's own answer. The model must exist and be allowed to the client, but no provider is asked."""
    translate_error: Callable[[ProxyError], None] | None = field(default=None, repr=False)
    """Names the client's own places in an error that names places in ``body``; None: they are the same."""
    trace: TraceHeaders | None = None
    """Trace headers for the provider; None if traces are disabled."""
    own: Callable[[str], Call] | None = field(default=None, repr=False)
    """Makes the call for the provider of that name; set if the client sent back data meant for one provider alone."""
    native: Native | None = field(default=None, repr=False)
    """The call in the client's own format, if a provider speaks that. Unless the whole chain does, the call is
    translated as well."""
    refusal: ProxyError | None = None
    """Why it cannot be translated. Such a call is only for routing: a provider gets what ``native`` writes."""
    cuts_length: bool = False
    """Whether ``max_tokens`` may be reduced to what the target can give: in the client's API it is required, so
    clients send some large number."""
    most: int | None = None
    """The number of tokens to reduce it to, once the provider writes its request."""
    headers: Mapping[str, str] = field(default=_NONE, repr=False)
    """To be sent along."""
    response_fields: Mapping[str, bytes] = _NONE
    """Members of a relayed answer to replace, such as the id of a response: the new JSON, by name."""

    def translated(self, *, for_all: bool = False) -> Call:
        """The call as a chat, with ``native`` kept unless it is `for_all` providers; if it has no translation, one with
        ``refusal``."""
        assert self.native is not None
        call = self.native.translate(for_all=for_all)
        call.native, call.headers = None if for_all else self.native, self.headers
        call.is_large = call.is_large or self.is_large
        return call

    def at(self, provider: str, speaks: Collection[str] = ()) -> Call:
        """The call as `provider` gets it. `speaks`: the formats that it accepts in addition to chats."""
        native = self.native
        if native is not None and native.dialect.path in speaks:
            if native.is_fixed and self.endpoint is native.dialect:
                return self
            call = native.write(provider)
            call.is_large = call.is_large or self.is_large
        elif self.own is None:
            return self
        else:
            call = self.own(provider)
        call.remarks = self.remarks
        return call

    @property
    def length(self) -> int | None:
        """``max_tokens``, or what it is renamed to, if it may be reduced, else None."""
        spans = self.summary.spans if self.cuts_length else {}
        span = spans.get("max_tokens") or spans.get("max_completion_tokens")
        digits = self.body[slice(*span)] if span is not None else b""
        if not digits.isdigit():
            digits = digits.rstrip(b" ")  # in place of the digits of a larger number
            if not digits.isdigit():
                return None
        return int(digits) if len(digits) <= _LONGEST_NUMBER else None

    def forget(self) -> list[Any]:
        """Drops the request itself, once a target has answered, and so no other one will be asked. Returns what was
        dropped, for the caller to free."""
        held: list[Any] = [self.body, self.own, self.native]
        if self.native is not None:
            held += self.native.forget()
        self.body, self.own, self.native = b"", None, None
        self.summary.forget()
        return held

    def text_size(self) -> int:
        """Bytes of the request without its images, whose token count does not follow from their bytes."""
        return self.sizes()[0]

    def sizes(self) -> tuple[int, int]:
        """`text_size`, and the number of images in the body."""
        body, size, at, number = self.body, len(self.body), 0, 0
        if VISION not in self.summary.needs:
            return size, 0
        begins = _ANTHROPIC_DATA if self.endpoint is Endpoint.MESSAGES else _DATA_URI
        text = _SEARCHED
        while (picture := begins.search(body, at, at + text)) is not None:
            if (end := body.find(b'"', picture.end())) < 0:  # its megabytes are skipped at the speed of memory
                break
            text -= picture.start() - at
            escape = body.find(b"\\", picture.end(), end)
            at = escape if escape >= 0 else end
            size -= at - picture.start()
            number += 1
        return size, number


class Native(Protocol):
    """A call in the client's own format, for providers that accept that format."""

    @property
    def dialect(self) -> Endpoint:
        """Name of the format, as in ``speaks`` of the configuration."""

    @property
    def is_fixed(self) -> bool:
        """Whether every provider of this format gets the call unchanged."""

    def write(self, provider: str) -> Call:
        """The call as the provider named `provider` gets it."""

    def translate(self, *, for_all: bool) -> Call:
        """The call as all other providers get it, or why there is none. `for_all`: none will get what `write` makes, so
        that need not be possible any more. Raises InvalidRequest."""

    def forget(self) -> list[Any]:
        """As `Call.forget`: what others refer to as well."""


TryWrite = Callable[[StreamBatch | bytes], bool]
"""Accepts a batch at once, or returns False without side effects. Bytes are ``frames`` and nothing else: what nearly
all chunks of a relayed stream become, and no batch is made for them."""


class Stream(Protocol):
    """One streamed answer in flight."""

    @property
    def usage(self) -> Usage | None:
        """Token counts; None until the provider has reported them."""

    async def next(self, try_write: TryWrite | None = None, until: float | None = None) -> StreamBatch:
        """The next batch; one with ``done`` or ``error`` is the last. Raises ProviderError if the stream breaks, and
        TimeoutError if the provider has sent nothing by loop time `until`.

        A stream that receives a batch in an event loop callback may offer it to `try_write` there. It then returns
        only batches that were not accepted, and the last one, so that no task is woken for each chunk.
        """

    def commit(self, idle: float) -> None:
        """From now on a silence of `idle` seconds breaks the stream."""

    async def aclose(self) -> None:
        """Stops the provider's work on the answer, within a second, at any point. Harmless when repeated."""


@frozen
class ModelInfo:
    """A model that a provider lists. ``capabilities`` None: unknown."""

    id: str
    created: int = 0
    """Seconds since the epoch; 0 if unknown."""
    capabilities: frozenset[str] | None = None
    aliases: tuple[str, ...] = ()
    """Other names under which the provider serves it."""
    context_length: int = 0
    """Tokens; 0 where it is not known."""
    max_output: int = 0
    """Tokens of one answer; 0 where it is not known."""
    size: int = 0
    """Bytes of its weights; 0 where the list does not say."""


@frozen
class ModelList:
    """The models that a provider lists. ``fault``: why the list is missing or incomplete, for the operator."""

    models: tuple[ModelInfo, ...] = ()
    fault: str | None = None
    status: int = 200
    """HTTP status of the listing. Anything below 500 shows that the provider is alive."""


class Provider(Protocol):
    """One configured provider."""

    async def complete(self, call: Call, entry: Entry) -> Answer:
        """The whole answer of `entry`'s target."""

    async def stream(self, call: Call, entry: Entry, until: float | None = None) -> Stream:
        """Opens a stream from `entry`'s target; returns when status and headers have arrived. Raises TimeoutError at
        loop time `until`."""

    def first_byte_error(self, seconds: float) -> ProviderError:
        """The failure of a stream that has no content within `seconds`: it may blame the provider or the model."""

    async def probe(self, seconds: float) -> ModelList | None:
        """The provider's models, within `seconds`; None if this kind of provider is not probed (Google).

        Raises ProviderError if it is not alive: no response began in time, or it failed. A model list that cannot be
        read is no error: see ``ModelList.fault``.
        """

    async def close(self) -> None:
        """Closes its connections. Streams in flight have ended by then."""
