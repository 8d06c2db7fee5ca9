"""Dialects. A *wire* builds requests for one kind of provider and reads its replies; it does no I/O.

To add a provider that speaks HTTP: write a `Wire` in a file of its own, add its kind to `generation`.
What real servers send, each fact with its source: docs/providers.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Protocol

from attrs import field

from manallm_proxy.contract.answers import DEFAULT_LIMITS, Answer, AnswerLimits, StreamBatch, Usage
from manallm_proxy.contract.provider import Call, ModelList
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.spliced import Body
from manallm_proxy.contract.targets import Entry


@define  # not frozen: as `events.RequestEnded`
class Request:
    """A POST below the provider's base URL. ``content_type`` None: it is JSON."""

    path: str
    content: Body = field(repr=False)
    content_type: str | None = None
    refused: Collection[str] = field(default=(), eq=False)
    """What the provider refused before this form, as far as it may be learned of the model, see `mending.learned`."""
    call: Call | None = field(default=None, eq=False, repr=False)
    """The call as this form of it is, for what the provider refuses next; None: it is unchanged."""
    headers: Mapping[str, str] | None = field(default=None, repr=False)

    @property
    def body(self) -> bytes:
        """The content in one piece, which copies a long one."""
        return bytes(self.content)

    def digest(self) -> bytes:
        """By which a form of a request is known again: none is sent twice."""
        digest, content = hashlib.blake2b(), self.content
        for part in (content,) if isinstance(content, bytes) else content.parts:
            digest.update(part)
        return digest.digest()


class Translator(Protocol):
    """Reads one streamed reply: bytes as they arrive, cut anywhere, become batches of whole events."""

    @property
    def usage(self) -> Usage | None:
        """Tokens, once the provider has counted them."""

    @property
    def held(self) -> int:
        """Number of bytes held of an incomplete event."""

    def is_open(self, data: bytes) -> bool:
        """Whether `data` does not end the incomplete event, so that it is only added to it."""

    def feed(self, data: bytes) -> StreamBatch:
        """The batch of events that `data` completes. Must not be called after ``done`` or ``error``."""

    def close(self) -> StreamBatch:
        """The end of the provider's body: the rest, with ``done``, or with the ``error`` of a cut stream."""


class Relays(Translator, Protocol):
    """A translator that tells by its bytes what nearly every chunk of a stream is, and what the client gets of it."""

    def relayed(self, data: bytes) -> bytes:
        """The frames that `data` becomes, if it is one whole event that only adds text. Empty: it has to be fed.

        Nothing changes by it, so that what was not taken may be fed.
        """


class Wire(Protocol):
    """One dialect over HTTP."""

    @property
    def probe_path(self) -> str | None:
        """What a probe GETs below the base URL; None if this kind is not probed."""

    def splices(self, call: Call) -> bool:
        """Whether `request` takes constant time, since it keeps the call's bytes except for a few."""

    def request(self, call: Call, entry: Entry) -> Request:
        """The request for `entry`'s target. Raises Unsupported or InvalidRequest if this dialect cannot express it."""

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """The error for a status other than 200. `headers` are case-insensitive, `body` is at most 64 KiB."""

    def reshape(self, call: Call, entry: Entry, status: int, body: bytes) -> Request | None:
        """After a refusal, the request in a form that the provider will accept, if `body` shows which; else None.

        Raises BadResponse if it refuses what was not in the request.
        """

    def remember_reshaped(self, entry: Entry, request: Request) -> bool:
        """`entry`'s target answered `request`, reshaped, with 200. A wire may send it that form from now on.

        Returns whether it has just learned that.
        """

    def answer(self, call: Call, entry: Entry, body: bytes, content_type: str = "") -> Answer:
        """The answer in the complete body of a 200, checked. Raises ProviderError if it does not answer `call`."""

    def translator(
        self, call: Call, entry: Entry, content_type: str, limits: AnswerLimits = DEFAULT_LIMITS
    ) -> Translator:
        """The reader of the body of a 200 to a streamed request."""

    def listed(self, body: bytes) -> ModelList:
        """The models in a probe's 200 body. Never raises: leaves out unreadable parts, and names them in ``fault``."""
