"""What each provider last said it has. Probes write it; nobody waits for it."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import define, field

from manallm_proxy.contract.provider import ModelInfo
from manallm_proxy.contract.targets import Target


@define
class Catalog:
    """Model lists by provider."""

    _models: dict[str, dict[str, ModelInfo]] = field(factory=dict)

    def learn(self, provider: str, models: tuple[ModelInfo, ...]) -> None:
        self._models[provider] = {m.id.lower(): m for m in models}

    def models(self, provider: str) -> Iterator[ModelInfo]:
        yield from self._models.get(provider, {}).values()

    def knows(self, provider: str) -> bool:
        """Whether the provider has listed anything at all."""
        return bool(self._models.get(provider))

    def lists(self, target: Target) -> bool:
        """Whether the provider lists exactly this name, but for case."""
        return target.model.lower() in self._models.get(target.provider, {})

    def find(self, target: Target) -> ModelInfo | None:
        """Ollama matches without case and implies ``:latest`` (wire.md B.6); for others it does no harm."""
        models = self._models.get(target.provider, {})
        name = target.model.lower()
        return models.get(name) or models.get(f"{name}:latest")

    def lacks(self, target: Target, needs: frozenset[str]) -> str | None:
        """The first of `needs` that the provider's own listing denies; None where it has them or does not say."""
        listed = self.find(target)
        if listed is None or listed.capabilities is None:
            return None
        return next((need for need in sorted(needs) if need not in listed.capabilities), None)

    def keep_only(self, providers: set[str]) -> None:
        for gone in self._models.keys() - providers:
            del self._models[gone]
