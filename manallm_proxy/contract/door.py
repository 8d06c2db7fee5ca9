"""What the gateway needs of a door: one client's format, read and written.

A `Door` reads a request into a `Call` and gives a `Reply`, which writes that client's one answer. The gateway
knows no format: it asks the reply for bytes and puts them on the connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Protocol

from attrs import field, frozen

from manallm_proxy.contract.answers import Answer, StreamBatch, Usage
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.targets import Target


@frozen
class Client:
    """Who asks. ``key``: the name of the client's key in the configuration; None where no key is asked for."""

    request_id: str
    key: str | None = None
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    """The request's; names compare without case."""


class Reply(Protocol):
    """Writes one answer. Its methods return the bytes to send.

    Either `whole` once, or `start`, then `events` for each batch, then `end` or `error`.
    """

    content_type: str
    """Of a stream."""

    def whole(self, target: Target, answer: Answer) -> bytes:
        """The body (JSON) of a complete answer that `target` gave."""

    def start(self, target: Target) -> None:
        """The commit: from now on `target` answers."""

    def events(self, batch: StreamBatch) -> bytes:
        """The events that `batch` becomes; may be empty."""

    def end(self, usage: Usage | None) -> bytes:
        """What ends a stream that is complete."""

    def error(self, error: ProxyError) -> bytes:
        """What ends a stream that broke, or one that could not be started once its status had left."""

    def heartbeat(self) -> bytes:
        """A sign of life in a silence, between two events; it must mean nothing to the client."""


class Door(Protocol):
    """One client API."""

    name: str
    """The metrics' label ``endpoint``, and the log's."""

    def read(self, body: bytes, client: Client) -> tuple[Call, Reply] | Awaitable[tuple[Call, Reply]]:
        """Raises InvalidRequest, with ``param``, for what no provider should be bothered with.

        A door whose requests refer to earlier ones may have to wait for them.
        """

    def error_body(self, error: ProxyError) -> bytes:
        """The body (JSON) of an answer with ``error.status``, before anything else has been sent."""

    def headers(self, request_id: str) -> Mapping[str, str]:
        """What this door's answers carry beside the headers of all answers."""
