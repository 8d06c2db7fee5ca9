"""``state``: the address of a Redis or Valkey through which instances share state."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Final

from manallm_proxy.config.extras import how_to_install
from manallm_proxy.config.values import HOST_WANTED, InvalidValue, is_host, text
from manallm_proxy.config.yaml_file import Unset

_STATE: Final = re.compile(
    r"(?:rediss?|(?:redis|rediss)\+cluster)://(?:[^@/]*@)?[^@/?]+(?:/[0-9]*)?(?:\?[^#]*)?"
    r"|rediss?\+sentinel://(?:[^@/]*@)?[^@/?]+/[^/?]+(?:/[0-9]*)?(?:\?[^#]*)?"
    r"|unix://(?:[^@/]*@)?/[^?]+(?:\?[^#]*)?"
)
_PARTS: Final = re.compile(r"([^:]*://)(?:[^@/]*@)?([^/?]*)([^?]*)")
"""Scheme, hosts and path. `urlsplit` takes no more than one IPv6 address, and sentinels may be several."""


def state_url(value: object) -> str | Unset:
    """The address of a Redis or Valkey: ``redis://host:6379/0``, ``rediss://``, ``unix:///path``; of a cluster
    ``redis+cluster://host``, of sentinels ``redis+sentinel://host:26379,host/service``. It may hold a password.

    `Unset` passes: nothing is shared.
    """
    if isinstance(value, Unset):
        return value
    found = text(value)
    match = _STATE.fullmatch(found)
    if match is None or re.search(r"[^\x21-\x7e]", found):
        raise InvalidValue(
            "expected redis://host:6379/0, rediss://, unix:///path, redis+cluster:// or redis+sentinel://"
        )
    scheme, hosts, _ = _parts(found)
    for place in hosts.split(",") if scheme.endswith("+sentinel://") else [hosts]:
        if not is_host(place) and scheme != "unix://":
            raise InvalidValue(HOST_WANTED)
        port = re.search(r":([0-9]+)$", place)
        if port is not None and not 0 < int(port[1][:6]) <= 65535:
            raise InvalidValue("expected a port from 1 to 65535")
    if find_spec("redis") is None:
        raise InvalidValue(f"needs a package that is not installed: {how_to_install('redis')}")
    return found


def redacted_state_url(url: str) -> str:
    """`url` for log and pages: scheme and address, without user, password and query."""
    return "".join(_parts(url))


def _parts(url: str) -> tuple[str, str, str]:
    match = _PARTS.match(url)
    assert match is not None  # which `state_url` has seen to
    return match[1], match[2], match[3]
