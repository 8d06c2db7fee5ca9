"""What a walk ends with if a target answers: the answer, with the permit under which it was asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, TypeVar

from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry
from manallm_proxy.routing.health import Permit
from manallm_proxy.routing.health_registry import HealthRegistry

T = TypeVar("T")


@define(eq=False)
class Attempt(Generic[T]):
    """A successful attempt. It owns its permit and its stream from the end of the walk to the end of the answer.

    ``async with`` closes the stream and releases the permit. Call `served` or `failed` before that; without either,
    nobody is blamed, since the client left.
    """

    entry: Entry
    value: T
    _permit: Permit
    _registry: HealthRegistry
    _aclose: Callable[[], Awaitable[None]] | None = None

    def began(self) -> None:
        """The answer has begun: a half-open circuit's trial has succeeded."""
        self._registry.began(self.entry.target, self._permit)

    def served(self) -> None:
        """The answer is complete."""
        self._registry.served(self.entry.target, self._permit)

    def failed(self, error: ProviderError) -> None:
        """The answer broke off; ``error.blame`` says what counts as failed."""
        error.target = str(self.entry.target)
        self._registry.failed(self.entry.target, self._permit, error)

    async def aclose(self) -> None:
        """Harmless when repeated."""
        try:
            if self._aclose is not None:
                await self._aclose()
        finally:
            self._permit.released()

    async def __aenter__(self) -> Attempt[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
