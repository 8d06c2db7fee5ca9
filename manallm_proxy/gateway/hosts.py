"""Which values of ``Host`` are served: a defence against DNS rebinding, for a proxy on loopback without client keys.

A web page may have its own name resolve to 127.0.0.1. For its browser the proxy then has the page's origin, and a GET
comes without ``Origin``. ``Host`` gives it away: it is the page's name, which is none of ours.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Collection
from typing import Final

_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]*))(?::[0-9]{1,5})?", re.IGNORECASE)


def is_allowed_host(host: str, address: str, configured: Collection[str]) -> bool:
    """Whether ``Host: host`` is served: it `is_local`, is the `address` that was connected to, or is `configured`.

    ``*`` in `configured` stands for any.
    """
    name = _name_in(host)
    if name is None:
        return False
    if is_local(host) or "*" in configured or name in configured:
        return True
    return str(_address(name)) == address.partition("%")[0]


@functools.lru_cache(256)
def is_local(host: str) -> bool:
    """Whether `host` can only name this machine or one in its network.

    A name without a dot counts: no public web page has one. An empty `host` counts too, since no browser sends it.
    """
    name = _name_in(host)
    if name is None:
        return False
    address = _address(name)
    if address is None:
        return "." not in name or name.endswith(".localhost")
    return address.is_loopback


def _name_in(host: str) -> str | None:
    """The name or address in `host`, without its port; None if it is malformed."""
    match = _HOST.fullmatch(host)
    return None if match is None else (match[1] or match[2] or "").lower().rstrip(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
