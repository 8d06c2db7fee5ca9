"""What the gateway needs of a door: reading and writing one client API's format.

A `Door` reads a request into a `Call` and makes a `Reply`, which writes the answer to that request. The gateway
knows no format: it gets bytes from the reply and writes them to the connection.
What real clients need: docs/clients.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping
from typing import Protocol, runtime_checkable

from attrs import field

from manallm_proxy.contract.answers import DEFAULT_LIMITS, Answer, StreamBatch, Usage
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.shortened import Shortened
from manallm_proxy.contract.targets import Target


@frozen
class DoorBounds:
    """What only a door can count. ``items``: of an answer, see `AnswerLimits`; ``messages`` and ``body`` (bytes): of a
    conversation with what the request refers to, as ``limits`` of the configuration has them for a request; ``keys``:
    at the top of a request, for a door that splits it there, see `Door.scans`."""

    items: int = DEFAULT_LIMITS.all_items
    messages: int = 20_000
    body: int = 32 * 2**20
    keys: int = 1000


@define  # not frozen: as `answers.Usage`
class Client:
    """Who sent a request. ``key``: the name of the client's key in the configuration; None if none is required."""

    request_id: str
    key: str | None = None
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    """The request's headers; names are case-insensitive."""
    dialects: frozenset[str] = frozenset()
    """Formats beside chats that a provider speaks itself: a request in one of them may do without its translation."""
    bounds: DoorBounds = DoorBounds()
    short: Shortened | None = field(default=None, repr=False)
    """The short form of a long body, if the body was split while it was read."""


class TakesLong(Exception):
    """`Reply.events` would write megabytes, and has changed nothing: it is to be called in a thread, with ``is_large``
    set."""


class Reply(Protocol):
    """Writes one answer. Its methods return the bytes to send.

    Call either `whole` once, or `start`, then `events` for each batch, then `end` or `error`.
    """

    content_type: str
    """Media type of a stream."""

    def whole(self, target: Target, answer: Answer) -> bytes:
        """The body of `target`'s complete answer; JSON unless the endpoint is opaque."""

    @property
    def ends_long(self) -> bool:
        """Whether `end` has so much to write that it is called in a thread."""

    def start(self, target: Target) -> None:
        """The commit: from now on `target` answers. Returns the bytes before the first event, maybe empty."""

    def events(self, batch: StreamBatch) -> bytes:
        """The events that `batch` becomes; may be empty. Raises TakesLong, see there."""

    def end(self, usage: Usage | None) -> bytes:
        """The end of a complete stream."""

    def error(self, error: ProxyError) -> bytes:
        """The end of a stream that broke, or of one in which no answer began after its status was sent."""

    def heartbeat(self) -> bytes:
        """Bytes that clients ignore, to be sent between two events during a silence; empty if the format has none."""


@runtime_checkable
class StatefulReply(Protocol):
    """A `Reply` of a door that keeps its answers for later requests."""

    async def is_known(self, whole: bytes) -> bool:
        """Whether later requests may refer to this whole answer, so that it may be given again."""


@runtime_checkable
class PartedReply(Protocol):
    """A `Reply` of a format that repeats the answer's texts, so that its events are several times as long as these."""

    def events_in_parts(self, batch: StreamBatch) -> Iterator[bytes]:
        """`Reply.events` of a large batch: whole events, each part made once the one before it is written."""

    def end_in_parts(self, usage: Usage | None) -> Iterator[bytes]:
        """`Reply.end` in the same way."""


class Door(Protocol):
    """One client API."""

    name: str
    """The value of ``endpoint`` in metrics and log."""

    scans: bool
    """Whether `read` only scans a body and keeps it: megabytes take a millisecond, so that no thread is needed.

    Then it also refuses a short one with too many keys at its top.
    """

    def read(self, body: bytes, client: Client) -> tuple[Call, Reply] | Awaitable[tuple[Call, Reply]]:
        """Reads a request. Raises InvalidRequest, with ``param`` if one is at fault, before any provider is asked.

        Awaitable if requests of this door refer to earlier ones, which may have to be fetched.
        """

    def error_body(self, error: ProxyError) -> bytes:
        """The JSON body of an error response with ``error.status``, when nothing else has been sent."""

    def headers(self, request_id: str) -> Mapping[str, str]:
        """Headers of this door's answers in addition to those of all answers."""
