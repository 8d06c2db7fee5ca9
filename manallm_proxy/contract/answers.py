"""What a provider answers, in no client's format: the neutral types between the dialects and the doors.

A provider that speaks the door's format may pass on its own bytes instead (``body``, ``frames``); everything else is
made of `Delta`s, which the door writes in its own format.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
from attrs import field

from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.records import define, frozen


@frozen
class AnswerLimits:
    """Limits on one answer: ``answers`` of the configuration. An answer above one of them is the provider's failure."""

    body: int = 256 * 2**20
    """Max bytes of a whole answer (embeddings, audio, images), decompressed."""
    text: int = 64 * 2**20
    """Max bytes of a whole chat or completion, decompressed."""
    keys: int = 1000
    """At the top."""
    parts: int = 200_000
    """Max objects and lists of a whole answer, or of one event."""
    elements: int = 16_000_000
    """Max values of any kind, texts and keys twice; the default holds 20,000 vectors of 768 numbers."""
    depth: int = 256
    calls: int = 2000
    """Tool calls in all, where they are translated: each becomes several objects, which are written at once."""
    items: int = 2000
    """Choices in all, images, and of an answer in a door's own items also these and their parts."""

    @property
    def all_items(self) -> int:
        """Items of an answer as a door writes it: each call may have its own reasoning, and there is a text."""
        return self.items + 2 * self.calls + 3

    @property
    def messages(self) -> int:
        """Max objects in the top-level lists: choices, or vectors."""
        return self.parts


DEFAULT_LIMITS: Final = AnswerLimits()


TOKENS_LIMIT: Final = 10**9
"""The highest token count that is believed when a provider reports it for one request."""


@define  # not frozen: there is one for each request, and freezing takes 60 ns a field
class Usage:
    """Tokens of one answer. ``reasoning`` is part of ``completion``; ``cached`` (read from a cache) and ``written`` (to
    one) are parts of ``prompt``."""

    prompt: int = 0
    completion: int = 0
    reasoning: int = 0
    cached: int = 0
    written: int = 0
    durations: tuple[int, int, int] | None = field(default=None, eq=False)
    """Nanoseconds that the model took to load, to read the prompt, and to write; None: the provider does not say."""

    @property
    def is_plausible(self) -> bool:
        """Whether the counts are plausible: absurd ones would ruin every total."""
        return self.prompt + self.completion <= TOKENS_LIMIT


def new_call_id() -> str:
    """An id for a tool call whose provider gave none."""
    return f"call_{secrets.token_hex(12)}"


@define  # not frozen: as `Usage`
class ToolCall:
    """A tool call, or one part of it: the parts of one call share ``index``, and their ``arguments`` concatenate.

    ``id`` and ``name`` come with the first part, and are empty in the others. No call is without a name.
    """

    name: str
    arguments: str = field(repr=False)
    """JSON text."""
    id: str = ""
    index: int = 0
    """Its position among the calls of its choice."""
    extra: dict[str, Any] = field(factory=dict, repr=False)
    """Other members that the client should send back with the call (Gemini's thought signature)."""


@define  # not frozen: as `Usage`
class Delta:
    """What one step of an answer adds to one choice. Only the last one has ``finish`` (OpenAI's ``finish_reason``)."""

    content: str = field(default="", repr=False)
    reasoning: str = field(default="", repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    finish: str | None = None
    index: int = 0
    """The choice."""
    logprobs: Any = field(default=None, repr=False)
    """OpenAI's ``logprobs`` of a choice."""
    images: tuple[str, ...] = field(default=(), repr=False)
    """Images that the model generated, as data URIs."""
    refusal: str = field(default="", repr=False)
    reasoning_key: str = "reasoning_content"
    """The member of an assistant message in which the provider expects ``reasoning`` back; empty: in none."""
    details: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """What the provider expects back in place of ``reasoning``, see `openai.reasoning_details`."""
    citations: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """Web pages that the content cites: OpenAI's ``url_citation``, flat as in Responses."""
    stopped_by: str = ""
    """The stop sequence that ended it, if the server says so."""

    @property
    def has_content(self) -> bool:
        """Whether it commits a stream."""
        return bool(self.finish) or self.has_words

    @property
    def is_text(self) -> bool:
        """Whether it adds text to the first choice and nothing else."""
        return bool(self.content) and self == Delta(content=self.content)

    @property
    def is_reasoning(self) -> bool:
        """Whether it adds reasoning to the first choice and nothing else."""
        return bool(self.reasoning) and self == Delta(reasoning=self.reasoning, reasoning_key=self.reasoning_key)

    @property
    def has_words(self) -> bool:
        """Whether it has more than a finish reason; ``content_filter`` counts, since it explains a missing answer."""
        said = self.content or self.reasoning or self.tool_calls or self.images or self.refusal
        return bool(said) or self.finish == "content_filter"


_STRING: Final = msgspec.json.Decoder(str)


class Texts(Delta):
    """Texts of one kind, added to the first choice one step each, still escaped as the provider's JSON had them.

    A door may splice each of ``texts`` between bytes of its own; one that does not know this class reads the member of
    a `Delta` that they are, in which they are one step. None is empty, and each is a JSON string without its quotes.
    """

    __slots__ = ("texts",)
    texts: Sequence[bytes]
    content = ""
    reasoning = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish = None
    index = 0
    logprobs = None
    images = ()
    refusal = ""
    reasoning_key = "reasoning_content"
    details = ()
    citations = ()
    stopped_by = ""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = texts

    @property
    def text(self) -> str:
        """All texts, decoded and concatenated."""
        return "".join([_STRING.decode(b'"%b"' % text) for text in self.texts])

    def plain(self) -> Delta:
        """The same as one ordinary, mutable `Delta`."""
        return Delta(self.content, self.reasoning, self.tool_calls, reasoning_key=self.reasoning_key)

    def step(self, text: bytes) -> Texts:
        """One of ``texts`` alone."""
        return type(self)((text,))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Delta) and self.plain() == (other.plain() if isinstance(other, Texts) else other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Words(Texts):
    """Texts that are content."""

    __slots__ = ()

    @property
    def content(self) -> str:  # type: ignore[override]  # a field of `Delta`, which here is only read
        return self.text


class Thoughts(Texts):
    """Texts that are reasoning. `key`: see `Delta.reasoning_key`."""

    __slots__ = ("reasoning_key",)

    def __init__(self, texts: Sequence[bytes], key: str = "reasoning_content") -> None:
        self.texts, self.reasoning_key = texts, key

    @property
    def reasoning(self) -> str:  # type: ignore[override]  # only read, too
        return self.text

    def step(self, text: bytes) -> Thoughts:
        return Thoughts((text,), self.reasoning_key)


class CallArguments(Texts):
    """Texts that continue the arguments of a tool call. `place`: see `ToolCall.index`."""

    __slots__ = ("place",)

    def __init__(self, texts: Sequence[bytes], place: int = 0) -> None:
        self.texts, self.place = texts, place

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:  # type: ignore[override]  # only read, too
        return (ToolCall("", self.text, "", self.place),)

    def step(self, text: bytes) -> CallArguments:
        return CallArguments((text,), self.place)


def steps(deltas: Iterable[Delta]) -> Iterator[Delta]:
    """`deltas`, with each text of `Texts` as a step of its own."""
    for delta in deltas:
        if isinstance(delta, Texts) and len(delta.texts) > 1:
            yield from map(delta.step, delta.texts)
        else:
            yield delta


@define  # not frozen: as `Usage`
class Answer:
    """One complete, checked answer.

    Either ``body`` (in the format of the call's endpoint, with the target as its ``model``), or ``choices`` (one Delta
    each, with its ``finish``), or ``vectors`` (one for each input).
    """

    body: bytes | None = field(default=None, repr=False)
    usage: Usage | None = None
    choices: tuple[Delta, ...] = ()
    vectors: Sequence[Sequence[float]] = field(default=(), repr=False)
    dimensions: int | None = None
    """Length of the first vector, in an answer to an embeddings request."""
    content_type: str = "application/json"
    """Of ``body``."""
    is_large: bool = False
    """Writing it takes so long that it would delay other requests: then it is done in a thread."""


@define  # not frozen: there is one for each read, and to freeze seven fields takes 0.7 µs
class StreamBatch:
    """What one read from the provider became: whole events only, in order of arrival."""

    frames: bytes = field(default=b"", repr=False)
    """Complete events in the format of the call's endpoint, to be sent to the client as they are."""
    deltas: tuple[Delta, ...] = ()
    """What the events add to the answer, if they are not relayed."""
    has_content: bool = False
    """Whether this commits the stream: by content, a tool call or a finish reason, not a role or an empty delta."""
    done: bool = False
    """The answer is complete; the door writes the end of the stream."""
    error: ProviderError | None = None
    """The provider ended the stream with an error, after ``frames`` and ``deltas``."""
    is_large: bool = False
    """Writing it takes so long that it would delay other requests: then it is done in a thread."""
    content_type: str = ""
    """Media type of the stream if the endpoint is opaque (see `provider.Endpoint`); on the first batch only."""

    def followed_by(self, rest: StreamBatch) -> StreamBatch:
        """Both as one, where this is not the last: `rest` itself, since `evolve` looks at each field of the class."""
        rest.frames, rest.deltas = self.frames + rest.frames, self.deltas + rest.deltas
        rest.has_content = self.has_content or rest.has_content
        return rest


@define
class ResponseBatch(StreamBatch):
    """A batch of a native Responses stream, with the response object (JSON) if its events had one. A subclass, since
    each field of a batch costs every chunk its time."""

    begun: bytes = field(default=b"", repr=False)
    """The response as the stream's first events have it, once; those events are not in ``frames``."""
    items: tuple[bytes, ...] = field(default=(), repr=False)
    """Items of its output (JSON) that these events have completed."""
    response: bytes = field(default=b"", repr=False)
    """The whole of it, with its end."""
