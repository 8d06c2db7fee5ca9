"""Client keys and budgets, as in the files and as used; see `model`."""

from __future__ import annotations

from typing import Annotated, Literal

from attrs import field

from manallm_proxy.config import amounts
from manallm_proxy.config.values import Integer, Matching
from manallm_proxy.contract.budgets import Amount, Budget, Limit, OnBudget
from manallm_proxy.contract.records import frozen

Locality = Literal["local"]
Count = Annotated[int, Integer(1)]
KEY_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
KeyName = Annotated[str, Matching(KEY_NAME, "at most 64 letters, digits, '.', '_' and '-'")]
Sha256 = Annotated[
    str, Matching("[0-9A-Fa-f]{64}", "64 hex digits: the key's SHA-256, as 'manallm-proxy hash-key' makes it")
]
ModelPattern = Annotated[
    str, Matching(r"[\x21-\x7e]{1,400}", "an alias or provider/model, in which '*' stands for any text")
]
BudgetAmount = Annotated[Amount, amounts.amount]
PerMinute = Annotated[int, Integer(1, 60_000)]
TokensPerMinute = Annotated[int, Integer(1, 10**9)]


@frozen
class BudgetGiven:
    """A budget per day, per month, or both."""

    day: BudgetAmount | None = None
    month: BudgetAmount | None = None

    def with_policy(self, on_budget: OnBudget | None) -> Budget:
        """The complete budget; `on_budget` None means ``local``."""
        limits = [Limit("day", self.day)] if self.day is not None else []
        limits += [Limit("month", self.month)] if self.month is not None else []
        return Budget(tuple(limits), on_budget or "local")


@frozen
class ClientKey:
    """One client key: its digest, and the rights of its holder."""

    name: KeyName
    """Names the key in logs and metrics."""
    sha256: Sha256 = field(repr=False)
    models: tuple[ModelPattern, ...] = ("*",)
    """Patterns of aliases and targets. Empty: the key can do nothing but what ``admin`` allows."""
    requests_per_minute: PerMinute | None = None
    concurrent_requests: Count | None = None
    admin: bool = False
    """Whether it may use operators' routes: metrics, health of providers, recent requests."""
    locality: Locality | None = None
    """``local``: its requests stay on the operator's own hardware."""
    tokens_per_minute: TokensPerMinute | None = None
    budget: BudgetGiven | None = None
    on_budget: OnBudget | None = None

    @property
    def whole_budget(self) -> Budget | None:
        """The complete budget; None: no limit."""
        return self.budget.with_policy(self.on_budget) if self.budget is not None else None

    def limits_per_worker(self, *, shared: bool) -> tuple[str, ...]:
        """The limits that each worker counts separately. `shared`: those per minute are counted for all."""
        per_minute = () if shared else ("requests_per_minute", "tokens_per_minute")
        return tuple(name for name in (*per_minute, "concurrent_requests") if getattr(self, name))


@frozen
class Auth:
    """Client keys. Without any, no key is required; ``open`` allows that even if other machines reach the proxy."""

    open: bool = False
    keys: tuple[ClientKey, ...] = ()
