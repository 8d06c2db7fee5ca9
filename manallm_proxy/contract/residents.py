"""The core's view of a local server that loads models on demand: what it has loaded, and how to load a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from manallm_proxy.contract.records import frozen
from manallm_proxy.contract.targets import Entry


@frozen
class Resident:
    """A loaded model. Sizes in bytes; 0: unknown."""

    name: str
    size: int = 0
    size_vram: int = 0
    """Bytes of it on the GPU; the CPU computes the rest."""
    context_length: int = 0
    """The window in force, in tokens."""
    expires_in: float | None = None
    """Seconds until it is unloaded if it is not used; None: unknown."""
    aliases: tuple[str, ...] = ()
    """Other names under which the server serves it."""


class ModelHost(Protocol):
    """One box. Its methods raise only `ProviderError`; any other exception is a bug."""

    async def residents(self, seconds: float) -> tuple[Resident, ...] | None:
        """What is loaded, asked within `seconds`; None if this server does not report it. Raises BadResponse if its
        answer cannot be read."""

    async def slots(self, loaded: Iterable[str], seconds: float) -> Mapping[str, int]:
        """How many requests it answers at a time, by model, of those that are `loaded`; of all together under ``""``.
        Asked within `seconds`; empty if this server does not say. Raises ProviderError if it cannot say now."""

    async def load(self, entry: Entry, *, pinned: bool) -> None:
        """Returns once `entry`'s model is loaded; cancelling it aborts the load. `pinned`: it is to stay."""

    async def close(self) -> None:
        """Closes its connections."""
