"""Keeps requests local if only providers on the operator's own hardware may serve them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import evolve
from multidict import CIMultiDictProxy

from manallm_proxy.config.model import ProviderConfig
from manallm_proxy.contract.attempts import AttemptRecord, LocalUnavailable
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.targets import Chain, Entry
from manallm_proxy.gateway.client_keys import Caller

HEADER: Final = "X-Mana-Locality"
NOT_LOCAL: Final = "not_local"
"""The reason for targets that such a request does not reach."""


def requires_local(chain: Chain, caller: Caller | None, headers: CIMultiDictProxy[str]) -> bool:
    """Whether the alias, the client's key or the request's header requires it to stay local.

    Raises InvalidRequest for any value but ``local``: a client that mistypes it must not be served remotely.
    """
    given = headers.getall(HEADER, ())
    if given and any(value.strip().lower() != "local" for value in given):
        raise InvalidRequest(f"the header {HEADER} knows one value: local", param=HEADER)
    return bool(given) or chain.local_only or (caller is not None and caller.key.locality == "local")


def is_local(providers: Mapping[str, ProviderConfig], entry: Entry) -> bool:
    """Whether `entry`'s model runs on the operator's own hardware."""
    return providers[entry.target.provider].runs_locally(entry.target)


def restrict_to_local(chain: Chain, providers: Mapping[str, ProviderConfig]) -> Chain:
    """`chain` without the targets that are not local. Raises LocalUnavailable if none is left."""
    entries = tuple(entry for entry in chain if is_local(providers, entry))
    if not entries:
        asked = chain.alias or str(chain.entries[0].target)
        raise LocalUnavailable(asked, [AttemptRecord(str(entry.target), NOT_LOCAL) for entry in chain], None)
    return evolve(chain, entries=entries, local_only=True)
