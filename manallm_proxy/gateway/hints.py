"""Exchanges findings about providers with other instances, as hints: an instance's own evidence counts more.

Messages hold durations, since each machine has its own monotonic clock, and a digest of the provider's address, since
the same name may mean another server elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import socket
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import msgspec
from attrs import field

from manallm_proxy.config.loopback import is_loopback
from manallm_proxy.config.model import ProviderConfig
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.targets import MODEL_LIMIT
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.routing.circuit import Hint, SharedState
from manallm_proxy.routing.health_registry import Broadcast
from manallm_proxy.routing.probes import Prober
from manallm_proxy.state.channel import Channel

NAME: Final = "health"
_WORD: Final = re.compile(r"[a-z0-9_]{1,40}")


@frozen
class Message:
    """A published hint. ``sender``: the instance; ``where``: see `address_digest`."""

    sender: str
    provider: str
    where: str
    model: str | None
    hint: Hint


_MESSAGE: Final = msgspec.json.Decoder(Message)


def address_digest(provider: ProviderConfig) -> str:
    """Equal for the same server. A loopback address counts together with this machine's host name."""
    host = urlsplit(provider.base_url or "").hostname or ""
    here = socket.gethostname() if is_loopback(host) else ""
    return hashlib.sha256(repr((provider.kind, provider.base_url, here)).encode()).hexdigest()[:16]


@define(eq=False)
class Hints:
    """``workers``: sends to the other workers of this instance, if there are any."""

    generation: Callable[[], Generation]
    workers: Broadcast | None = None
    _sender: str = field(factory=lambda: secrets.token_hex(8))
    _channel: Channel | None = None
    _probes: set[asyncio.Task[None]] = field(factory=set)
    _left: asyncio.Task[None] | None = None

    def publish(self, provider: str, model: str | None, update: SharedState) -> None:
        """Sends a change that this process found to the other workers, and to other instances."""
        if self.workers is not None:
            self.workers(provider, model, update)
        if self._channel is not None:
            settings = self.generation().config.providers[provider]
            message = Message(self._sender, provider, address_digest(settings), model, Hint.of(update))
            self._channel.publish(msgspec.json.encode(message))

    def follow(self, generation: Generation) -> None:
        """Subscribes at the server through which `generation` shares its state, if any."""
        link, before = generation.answers.link, self._channel
        if before is not None and before.link is link:
            return
        if before is not None:
            self._left = asyncio.get_running_loop().create_task(before.close())
        self._channel = Channel(link, NAME, self.receive) if link is not None else None
        if self._channel is not None:
            self._channel.start()

    def receive(self, data: bytes) -> None:
        """Applies a message, unless it is our own, or about a provider that is not ours."""
        try:
            message = _MESSAGE.decode(data)
        except ValueError:
            return
        generation = self.generation()
        settings = generation.config.providers.get(message.provider)
        if message.sender == self._sender or settings is None or message.where != address_digest(settings):
            return
        if len(message.model or "") > MODEL_LIMIT or not _WORD.fullmatch(message.hint.reason or "unknown"):
            return
        doubtful = generation.registry.take_hint(message.provider, message.model, message.hint)
        if doubtful and (client := generation.providers.get(message.provider)) is not None:
            seconds = generation.config.health.probe_timeout
            prober = Prober({message.provider: client}, generation.registry, generation.catalog, seconds, seconds)
            task = asyncio.get_running_loop().create_task(prober.once())
            self._probes.add(task)
            task.add_done_callback(self._probes.discard)

    async def close(self) -> None:
        for probe in self._probes:
            probe.cancel()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
