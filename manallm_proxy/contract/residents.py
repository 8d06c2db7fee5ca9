"""What a server that loads models on demand tells of those that it has loaded, and what can be asked of it."""

from __future__ import annotations

from typing import Protocol

from attrs import frozen

from manallm_proxy.contract.targets import Entry


@frozen
class Resident:
    """A model that is loaded. Sizes in bytes; zeros: not known."""

    name: str
    size: int = 0
    size_vram: int = 0
    """What of it lies on the GPU; the rest is computed by the CPU."""
    context_length: int = 0
    """The window in force, in tokens."""
    expires_in: float | None = None
    """Seconds after which it is unloaded unless it is used; None: not known."""


class ModelHost(Protocol):
    """One such server. Each method raises a `ProviderError` and nothing else but a bug."""

    async def residents(self, seconds: float) -> tuple[Resident, ...] | None:
        """What is loaded, asked within `seconds`; None where such servers do not tell. BadResponse for nonsense."""

    async def load(self, entry: Entry, *, pinned: bool) -> None:
        """Returns once `entry`'s model is loaded; cancelling it aborts the load. `pinned`: it is to stay."""

    async def close(self) -> None:
        """Closes its connections."""
