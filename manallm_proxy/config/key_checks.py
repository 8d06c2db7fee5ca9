"""Checks of ``auth`` across entries: duplicate keys, and patterns that match nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from manallm_proxy.config.hints import suggestion
from manallm_proxy.config.keys_model import Auth, BudgetGiven
from manallm_proxy.config.yaml_file import shown
from manallm_proxy.contract.budgets import OnBudget


def key_mistakes(
    auth: Auth, aliases: Collection[str], providers: Collection[str], prefix: str
) -> Iterator[tuple[str, str]]:
    """(path, text) of each mistake that involves several entries."""
    if auth.open and auth.keys:
        yield "auth.open", "give either keys, or 'open: true' for everyone; with both it is not clear who may call"
    names: dict[str, int] = {}
    digests: dict[str, int] = {}
    for n, key in enumerate(auth.keys):
        if (first := names.setdefault(key.name, n)) != n:
            yield f"auth.keys[{n}].name", f"is auth.keys[{first}]'s already; logs and metrics tell keys by name"
        if (first := digests.setdefault(key.sha256.lower(), n)) != n:
            yield f"auth.keys[{n}].sha256", f"is auth.keys[{first}]'s already; 'manallm-proxy hash-key' makes another"
        for where, why in budget_mistakes(key.budget, key.on_budget):
            yield f"auth.keys[{n}].{where}", why
        for place, pattern in enumerate(key.models):
            if (what := _matches_nothing(pattern, aliases, providers, prefix)) is not None:
                yield f"auth.keys[{n}].models[{place}]", what


def budget_mistakes(budget: BudgetGiven | None, on_budget: OnBudget | None) -> Iterator[tuple[str, str]]:
    """(key, text) of each mistake in a budget."""
    if budget is not None and budget.day is None and budget.month is None:
        yield "budget", "says no amount: give day, month, or both, such as 'day: 5 USD'"
    if budget is None and on_budget is not None:
        yield "on_budget", "is for a budget, and none is given"


def _matches_nothing(pattern: str, aliases: Collection[str], providers: Collection[str], prefix: str) -> str | None:
    """Why a pattern cannot match anything; None if it can."""
    owner, slash, rest = pattern.partition("/")
    if "*" in owner:
        return None
    if not slash:
        return "expected an alias or provider/model, in which '*' stands for any text"
    if f"{owner}/" == prefix:
        if "*" in rest or pattern in aliases or not aliases:
            return None
        return f"no alias '{shown(pattern)}'{suggestion(pattern, aliases)}"
    if owner in providers:
        return None
    return f"no provider '{shown(owner)}'{suggestion(owner, [*providers, prefix.rstrip('/')])}"
