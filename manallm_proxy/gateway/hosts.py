"""Which ``Host`` may be asked for, where a web page could ask for another: on loopback, without client keys.

A page whose name's address becomes 127.0.0.1 (DNS rebinding) is of the same origin as the proxy for its browser, which
sends no ``Origin`` with a GET then. Its ``Host`` tells: it is the page's own name, which we do not have.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Collection
from typing import Final

_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]*))(?::[0-9]{1,5})?", re.IGNORECASE)


def is_ours(host: str, address: str, configured: Collection[str]) -> bool:
    """Whether the value of ``Host`` is `is_local`, `address`, at which it was asked, or `configured` (``*``: any)."""
    name = _name_in(host)
    if name is None:
        return False
    if is_local(host) or "*" in configured or name in configured:
        return True
    return str(_address(name)) == address.partition("%")[0]


@functools.lru_cache(256)
def is_local(host: str) -> bool:
    """Whether the value of ``Host`` is this machine's or its network's, at whatever address it was asked.

    A name without a dot is one of the local network or of this machine: no page on the web has such a name. Without a
    host there is no browser.
    """
    name = _name_in(host)
    if name is None:
        return False
    address = _address(name)
    if address is None:
        return "." not in name or name.endswith(".localhost")
    return address.is_loopback


def _name_in(host: str) -> str | None:
    """The name or address, without port; None for what is none."""
    match = _HOST.fullmatch(host)
    return None if match is None else (match[1] or match[2] or "").lower().rstrip(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
