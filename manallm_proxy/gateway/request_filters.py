"""The filters of ``GET /v1/requests``: checks them, with a message that lists what is allowed, and applies them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, get_args

from manallm_proxy.config.model import Config
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.events import Outcome

MOST: Final = 1000
"""Max rows of one answer."""
FILTERS: Final = ("alias", "target", "outcome", "key", "limit")
SHOWN: Final = 40
"""Max names that a message lists."""


def reject_unknown(query: Mapping[str, str], allowed: Collection[str]) -> None:
    """Raises InvalidRequest if `query` has any other parameter, since a misspelt filter would seem to be applied."""
    for name in query:
        if name not in allowed:
            shown = name[:40].encode("ascii", "replace").decode()
            raise InvalidRequest(f"unknown parameter; allowed: {', '.join(allowed)}", param=shown)


def check(query: Mapping[str, str], config: Config) -> None:
    """Raises InvalidRequest for the first filter that cannot match anything."""
    reject_unknown(query, FILTERS)
    one_of(query, "alias", config.aliases)
    one_of(query, "outcome", get_args(Outcome))
    one_of(query, "key", [key.name for key in config.auth.keys])
    target = query.get("target")
    if target is not None:
        provider, slash, model = target.partition("/")
        if not (slash and model and provider in config.providers):
            _refuse("target", "provider/model, with a provider of", config.providers)
    limit = query.get("limit", "1")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 9 and 1 <= int(limit) <= MOST):
        raise InvalidRequest(f"'limit' is a whole number from 1 to {MOST}", param="limit")


def select(query: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those of `rows` that match `query`, without their attempts, which only ``GET /v1/requests/{id}`` shows."""
    wanted = {name: value for name, value in query.items() if name != "limit"}
    limit = int(query.get("limit", MOST))
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return [{name: value for name, value in row.items() if name != "attempts"} for row in found[:limit]]


def one_of(query: Mapping[str, str], name: str, allowed: Collection[str]) -> None:
    """Raises InvalidRequest if `query` has the parameter `name`, and it is none of `allowed`."""
    if name in query and query[name] not in allowed:
        _refuse(name, "one of", allowed)


def _refuse(name: str, what: str, allowed: Collection[str]) -> None:
    names = list(allowed)
    if not names:
        raise InvalidRequest(f"nothing can be picked by '{name}': none is configured", param=name)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    raise InvalidRequest(f"'{name}' is {what}: {', '.join(names[:SHOWN])}{more}", param=name)
