"""The models that each provider last listed. Probes write it; requests read it and never wait for a probe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from attrs import evolve, field

from manallm_proxy.contract.provider import ModelInfo
from manallm_proxy.contract.provider_errors import MissingModel
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.targets import Chain, Entry, Target, is_model_name, ollama_name
from manallm_proxy.routing import best_model

_Question = tuple[frozenset[str], tuple[str, ...], frozenset[str]]
"""What a request needs, what the entry prefers, which ids the chain names itself."""


@frozen(eq=False)
class Listed:
    """What a provider listed last."""

    models: Mapping[str, ModelInfo] = field(factory=dict)
    names: Mapping[str, ModelInfo] = field(factory=dict)
    """By every name of a model in lower case, ids first."""
    ranked: best_model.Ranked = best_model.Ranked()

    @classmethod
    def after(cls, before: Listed | None, models: Iterable[ModelInfo]) -> Listed:
        """`models`, in a form that is quick to look up; `before` itself if it has the same ones.

        Takes a tenth of a second for ten thousand models, so it is called in a thread then.
        """
        known = {model.id: model for model in models if is_model_name(model.id)}
        if before is not None and before.models == known:
            return before
        names = {id_.lower(): model for id_, model in known.items()}
        for model in known.values():
            for name in (*filter(is_model_name, model.aliases), *_file_names(model.id)):
                names.setdefault(name.lower(), model)
        return cls(known, names, best_model.Ranked.of(known.values()))


_NONE: Final = Listed()


@define
class Catalog:
    """Model lists by provider."""

    faults: dict[str, str] = field(factory=dict)
    """By provider: the last reported fault of its list."""
    _lists: dict[str, Listed] = field(factory=dict)
    _chosen: dict[str, dict[_Question, tuple[str | None, str]]] = field(factory=dict)
    """By provider: per question the chosen model, or None and the reason. Cleared when the list changes."""

    def learn(self, provider: str, models: Iterable[ModelInfo]) -> None:
        """Replaces the provider's list. Leaves out ids that no request could name."""
        self.adopt(provider, Listed.after(self.listed(provider), models))

    def listed(self, provider: str) -> Listed | None:
        """What the provider has listed; None: nothing yet. It never changes."""
        return self._lists.get(provider)

    def adopt(self, provider: str, listed: Listed) -> None:
        """Replaces the provider's list by what `Listed.after` has made."""
        if listed is not self._lists.get(provider):
            self._chosen.pop(provider, None)
            self._lists[provider] = listed

    def models(self, provider: str) -> Iterator[ModelInfo]:
        yield from self._lists.get(provider, _NONE).models.values()

    def knows(self, provider: str) -> bool:
        """Whether the provider has listed anything at all."""
        return bool(self._lists.get(provider, _NONE).models)

    def lists(self, target: Target) -> bool:
        """Whether the provider lists exactly this name, ignoring case. Aliases do not count."""
        name = target.model.lower()
        model = self._lists.get(target.provider, _NONE).names.get(name)
        return model is not None and model.id.lower() == name  # not by an alias

    def find(self, target: Target) -> ModelInfo | None:
        """The listed model with this id, alias or file name, ignoring case as Ollama does; None if there is none."""
        names = self._lists.get(target.provider, _NONE).names
        if not names:
            return None
        name = target.model.lower()
        return names.get(name) or next((names[other] for other in _other_spellings(name) if other in names), None)

    def filled(self, chain: Chain, needs: frozenset[str]) -> Chain:
        """`chain` for a request that `needs` these capabilities, each open entry filled with the best listed model.

        An entry for which no model fits stays open, with the reason in ``unfilled``.
        """
        if not chain.is_open:
            return chain
        taken = [entry.target for entry in chain if not entry.target.is_open]
        entries: list[Entry] = []
        for entry in chain:
            if entry.target.is_open:
                entry = self._fill(entry, needs, taken)
                taken.append(entry.target)
            entries.append(entry)
        return evolve(chain, entries=tuple(entries))

    def _fill(self, entry: Entry, needs: frozenset[str], taken: Iterable[Target]) -> Entry:
        provider = entry.target.provider
        ids = frozenset(model.id for target in taken if target.provider == provider and (model := self.find(target)))
        question = needs, entry.prefer, ids
        answers = self._chosen.setdefault(provider, {})
        if question not in answers:
            answers[question] = self._choose(provider, *question)
        chosen, why = answers[question]
        if chosen is None:
            return evolve(entry, unfilled=why)
        # that it is gone since is no mistake of the caller's, who has not named it
        return evolve(entry, target=Target(provider, chosen), fallback_on=entry.fallback_on | {MissingModel.widened_by})

    def _choose(
        self, provider: str, needs: frozenset[str], prefer: tuple[str, ...], taken: frozenset[str]
    ) -> tuple[str | None, str]:
        listed = self._lists.get(provider)
        if listed is None:
            return None, "it has not listed its models"
        chosen = listed.ranked.best(needs, prefer, taken)
        if chosen is not None:
            return short_name(chosen.id), ""
        return None, best_model.no_match_reason(self.models(provider), needs, taken, short_name)

    def keep_only(self, providers: set[str]) -> None:
        for held in (self._lists, self._chosen, self.faults):
            for gone in held.keys() - providers:
                del held[gone]


def short_name(id_: str) -> str:
    """`id_`; if it is a path on the server (as with llama-server), its file name without ``.gguf``."""
    return [*_file_names(id_)][-1] if id_.startswith(("/", "\\")) and id_.lower().endswith(".gguf") else id_


def _file_names(id_: str) -> Iterator[str]:
    """llama-server lists the path of its file if it was given no alias."""
    if id_.lower().endswith(".gguf"):
        name = id_.replace("\\", "/").rpartition("/")[2]
        yield from (name, name[: -len(".gguf")])


def _other_spellings(name: str) -> Iterator[str]:
    bare = ollama_name(name)
    yield from (bare, f"{bare}:latest")
