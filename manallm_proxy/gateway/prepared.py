"""What takes long to build of a generation, for thousands of aliases or client keys: so it is built in a thread."""

from __future__ import annotations

from manallm_proxy.config.model import Config
from manallm_proxy.contract.records import frozen
from manallm_proxy.gateway.client_keys import Keyring


@frozen
class Prepared:
    """Parts of the generation for one configuration. ``targets``: provider and model of each entry of an alias."""

    keyring: Keyring
    targets: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, config: Config, before: Keyring | None = None) -> Prepared:
        """`before`: the keyring of the generation that serves; see `Keyring.build`."""
        targets = frozenset(
            (entry.target.provider, entry.target.model) for chain in config.aliases.values() for entry in chain.entries
        )
        return cls(Keyring.build(config.auth.keys, before), targets)
