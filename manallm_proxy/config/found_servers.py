"""Adds discovered model servers to the files' contents: as providers, and next to the open entries of the chains.

It works on plain data before validation; malformed parts are left for the validation to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from attrs import field

from manallm_proxy.config.loopback import ALL_HERE, is_loopback
from manallm_proxy.config.model import DiscoveredServer
from manallm_proxy.contract.records import define


@define
class Addition:
    """The added providers, by name."""

    addresses: dict[str, str] = field(factory=dict)
    """The addresses of all providers, including those in the files."""
    added: list[str] = field(factory=list)

    @classmethod
    def to(cls, raw: dict[str, Any], found: Sequence[DiscoveredServer]) -> Addition:
        """Adds to ``providers`` those of `found` whose address no provider has yet."""
        made = cls()
        if not found or not isinstance(providers := raw.get("providers"), Mapping):
            return made
        for name, given in providers.items():
            if isinstance(given, Mapping) and isinstance(url := given.get("base_url"), str):
                made.addresses[name] = address_of(url)
        new: dict[str, Any] = dict(providers)
        for each in found:
            if (address := address_of(each.base_url)) in made.addresses.values():
                continue
            name = free_name(each.name, new)
            new[name] = {"kind": each.kind, "base_url": each.base_url}
            made.addresses[name] = address
            made.added.append(name)
        raw["providers"] = new
        return made

    def beside_open_entries(self, alias: object) -> None:
        """Adds an open entry per server to the alias's chain, next to its first open one, local servers first."""
        if not self.added or not isinstance(alias, dict) or not isinstance(chain := alias.get("chain"), list):
            return
        for place, entry in enumerate(chain):
            provider = _open_provider(entry)
            if provider is not None:
                before: list[Any] = []
                after: list[Any] = []
                for name in self.added:
                    like = {**entry, "target": f"{name}/*"} if isinstance(entry, dict) else f"{name}/*"
                    nearer = _is_local(self.addresses[name]) and not _is_local(self.addresses.get(provider, ""))
                    (before if nearer else after).append(like)
                alias["chain"] = [*chain[:place], *before, entry, *after, *chain[place + 1 :]]
                return


def address_of(url: str) -> str:
    """Host, port and path in a form that is equal for all spellings of one server."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return url
    host = parts.hostname or ""
    host = "127.0.0.1" if is_loopback(host) or host in ALL_HERE else host
    return f"{host}:{port}{parts.path.rstrip('/').removesuffix('/v1')}"


def free_name(name: str, taken: Mapping[str, object]) -> str:
    """`name`, or ``name-2`` and so on if there is one already."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _open_provider(entry: object) -> str | None:
    target = entry.get("target") if isinstance(entry, dict) else entry
    if not isinstance(target, str) or not target.endswith("/*"):
        return None
    return target.removesuffix("/*")


def _is_local(address: str) -> bool:
    return address.startswith("127.0.0.1:")
