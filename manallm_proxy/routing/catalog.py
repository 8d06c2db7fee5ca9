"""What each provider last said it has. Probes write it; nobody waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from attrs import define, field

from manallm_proxy.contract.provider import ModelInfo
from manallm_proxy.contract.targets import MODEL_LIMIT, Target

_PREFIXES = ("registry.ollama.ai/library/", "library/")
"""What Ollama takes for granted before a name, as it does ``:latest`` after it (types/model/name.go)."""

OPTIONAL: Final = frozenset({"thinking"})
"""Capabilities that a request can do without: what asks for them is left out where the target lacks them."""
COMPLETE: Final = frozenset({"completion"})
"""A listing that names this one (Ollama's) names all that there are."""


@define
class Catalog:
    """Model lists by provider."""

    faults: dict[str, str] = field(factory=dict)
    """What was last reported of a provider's list."""
    _models: dict[str, dict[str, ModelInfo]] = field(factory=dict)
    _names: dict[str, dict[str, ModelInfo]] = field(factory=dict)
    """By every name of a model, ids first."""

    def learn(self, provider: str, models: Iterable[ModelInfo]) -> None:
        """The list as of now. An id that no request could name is refused."""
        known = {model.id: model for model in models if is_name(model.id)}
        names = {id_.lower(): model for id_, model in known.items()}
        for model in known.values():
            for name in (*filter(is_name, model.aliases), *_file_names(model.id)):
                names.setdefault(name.lower(), model)
        self._models[provider], self._names[provider] = known, names

    def models(self, provider: str) -> Iterator[ModelInfo]:
        yield from self._models.get(provider, {}).values()

    def knows(self, provider: str) -> bool:
        """Whether the provider has listed anything at all."""
        return bool(self._models.get(provider))

    def lists(self, target: Target) -> bool:
        """Whether the provider lists exactly this name, but for case."""
        name = target.model.lower()
        model = self._names.get(target.provider, {}).get(name)
        return model is not None and model.id.lower() == name  # not by an alias

    def find(self, target: Target) -> ModelInfo | None:
        """By id or alias, or by the name of a listed file; without case, as Ollama matches."""
        names = self._names.get(target.provider, {})
        return next((names[name] for name in _spellings(target.model.lower()) if name in names), None)

    def lacks(self, target: Target, needs: frozenset[str]) -> str | None:
        """The first of `needs` that the provider's own listing denies; None where it has them or does not say."""
        listed = self.find(target)
        if listed is None or listed.capabilities is None:
            return None
        return next((need for need in sorted(needs) if need not in listed.capabilities), None)

    def denied(self, target: Target) -> frozenset[str]:
        """Those of `OPTIONAL` that the provider's own listing denies."""
        listed = self.find(target)
        if listed is None or listed.capabilities is None or not listed.capabilities & COMPLETE:
            return frozenset()
        return OPTIONAL - listed.capabilities

    def keep_only(self, providers: set[str]) -> None:
        for held in (self._models, self._names, self.faults):
            for gone in held.keys() - providers:
                del held[gone]


def is_name(name: str) -> bool:
    """Printable, and no longer than what is asked for."""
    return 0 < len(name) <= MODEL_LIMIT and name.isprintable()


def _file_names(id_: str) -> Iterator[str]:
    """llama-server lists the path of its file where it was given no alias."""
    if id_.lower().endswith(".gguf"):
        name = id_.replace("\\", "/").rpartition("/")[2]
        yield from (name, name[: -len(".gguf")])


def _spellings(name: str) -> Iterator[str]:
    yield name
    bare = name.removesuffix(":latest")
    for prefix in _PREFIXES:
        bare = bare.removeprefix(prefix)
    yield from (bare, f"{bare}:latest")
