"""Keeps all vectors of an alias at one length: vectors of another model cannot be compared with stored ones."""

from __future__ import annotations

from typing import Final

from attrs import field

from manallm_proxy.contract.errors import EmbeddingSpaceMismatch
from manallm_proxy.contract.events import DimensionsDiffer, Observer
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Chain, Entry
from manallm_proxy.openai.token_counts import asked_number

SPACES_LIMIT: Final = 1000
"""Max remembered lengths; clients choose the ``dimensions`` that they ask for."""


@define(eq=False)
class EmbeddingSpaces:
    """``learned``: by alias and the ``dimensions`` that the request asked for (0: none), who gave the first vector, and
    its length."""

    learned: dict[tuple[str, int], tuple[str, int]] = field(factory=dict)

    def check(self, chain: Chain, call: Call, entry: Entry, length: int, observe: Observer) -> None:
        """Raises EmbeddingSpaceMismatch, and reports it, if `entry`'s vectors have a `length` other than expected."""
        if chain.alias is None:
            return
        asked = asked_number(call, "dimensions")
        first, expected = self._expected(chain, asked, entry, length)
        if expected == length:
            return
        observe(DimensionsDiffer(chain.alias, first, expected, str(entry.target), length))
        raise EmbeddingSpaceMismatch(
            f"{entry.target} gave vectors of {length} dimensions, where {first} has {expected}: they cannot be "
            f"compared, so none are handed on. Whoever runs this proxy can leave {entry.target} out of {chain.alias}, "
            "or give its entries the 'dimensions' that are right",
            param="model",
        )

    def _expected(self, chain: Chain, asked: int, entry: Entry, length: int) -> tuple[str, int]:
        declared = next((each for each in chain if each.dimensions is not None), None)
        if declared is not None and declared.dimensions is not None and not asked:
            return chain.alias or "", declared.dimensions
        key = chain.alias or "", asked
        if key not in self.learned and len(self.learned) >= SPACES_LIMIT:
            return "", length
        return self.learned.setdefault(key, (str(entry.target), length))
