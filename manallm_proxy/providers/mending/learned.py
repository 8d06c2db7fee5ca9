"""What a wire has learned of models: what each refuses of everyone, so that it does not get that any more."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from attrs import field

from manallm_proxy.contract.records import define

LEARNED_LIMIT: Final = 1000
"""Max models of which it is known what they refuse. Clients choose such names."""
_NOTHING: Final[frozenset[str]] = frozenset()


@define
class Learned:
    """``contrary``: by what may be refused, what is forgotten once that was: a model wants the one or the other."""

    contrary: Mapping[str, Collection[str]] = field(factory=dict, repr=False)
    by_model: dict[str, frozenset[str]] = field(factory=dict)
    """Oldest first. Empty for most providers, whose requests look no further."""
    of_any: set[str] = field(factory=set)
    """All that any model has ever refused."""

    def of(self, model: str) -> frozenset[str]:
        return self.by_model.get(model, _NOTHING)

    def learn(self, model: str, refused: Collection[str]) -> set[str]:
        """`model` refuses these, too. Returns what was not known yet. Above the limit the oldest model is dropped."""
        if not refused:
            return set()
        known = self.by_model.pop(model, _NOTHING)
        if len(self.by_model) >= LEARNED_LIMIT:
            del self.by_model[next(iter(self.by_model))]
        outdated = {other for what in refused for other in self.contrary.get(what, ())}
        self.by_model[model] = (known - outdated).union(refused)
        self.of_any.update(refused)
        return set(refused) - known
