"""Dialects. A *wire* shapes a request for one kind of provider and reads its reply; it does no I/O.

To add a provider that speaks HTTP: write a `Wire` in a file of its own, add its kind to `generation`.
What real servers send, each habit with its source: docs/providers.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from attrs import define, field

from manallm_proxy.contract.answers import Answer, StreamBatch, Usage
from manallm_proxy.contract.provider import Call, ModelList
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.targets import Entry


@define  # not frozen: as `events.RequestEnded`
class Request:
    """A POST below the provider's base URL. ``content_type`` None: ``body`` is JSON."""

    path: str
    body: bytes = field(repr=False)
    content_type: str | None = None
    without: str = field(default="", eq=False)
    """The field that was left out since the provider refused it."""
    headers: Mapping[str, str] | None = field(default=None, repr=False)


class Translator(Protocol):
    """One streamed reply: bytes in as they arrive, cut anywhere; pieces of whole events out."""

    @property
    def usage(self) -> Usage | None:
        """Tokens, once the provider has counted them."""

    def feed(self, data: bytes) -> StreamBatch:
        """What `data` completed. After ``done`` or ``error`` nothing more is fed."""

    def close(self) -> StreamBatch:
        """The provider's end of stream: what was still held, then ``done``, or the ``error`` of a cut stream."""


class Wire(Protocol):
    """One dialect over HTTP."""

    @property
    def probe_path(self) -> str | None:
        """What a probe GETs below the base URL; None where it is not probed."""

    def request(self, call: Call, entry: Entry) -> Request:
        """Raises Unsupported or InvalidRequest for what this dialect cannot say."""

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What a status other than 200 means. `headers` compare without case, `body` is at most 64 KiB."""

    def reshape(self, call: Call, entry: Entry, status: int, body: bytes) -> Request | None:
        """The same request in a form that the provider will take, where its refusal tells which; else None."""

    def took(self, entry: Entry, request: Request) -> bool:
        """`entry`'s target answered `request`, reshaped, with 200. Where that was its way, it is asked so from now on.

        Whether that is news.
        """

    def answer(self, call: Call, entry: Entry, body: bytes, content_type: str = "") -> Answer:
        """A complete 200 body, checked. Raises ProviderError where it is not what was asked for."""

    def translator(self, call: Call, entry: Entry, content_type: str) -> Translator:
        """For a 200 to a streamed request."""

    def listed(self, body: bytes) -> ModelList:
        """The models in a probe's 200 body. Never raises: what cannot be read is left out, and said in ``fault``."""
