"""Recognises the proxy's own address among those of its providers: one request would become thousands."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from manallm_proxy.config.loopback import ALL_HERE, is_loopback
from manallm_proxy.config.model import Listen

MISTAKE = (
    "is this proxy's own address, so it would ask itself without end: give the address of the server behind it, or, if "
    "this proxy is elsewhere, its own under 'listen'"
)


def is_own(listen: Listen, url: str) -> bool:
    """Whether a request to `url` certainly reaches a proxy that listens on `listen`.

    Other addresses of this machine are not looked up, and a socket passed by systemd is not known here.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError:
        return False
    if listen.unix is not None or parts.scheme != "http" or port != listen.port:
        return False
    reached, bound = _addresses(parts.hostname or ""), _addresses(listen.host)
    versions = {_version(address) for address in bound if address in ALL_HERE}
    return bool(reached & bound) or any(is_loopback(address) and _version(address) in versions for address in reached)


_LOCALHOST = frozenset(ALL_HERE.values())


def _addresses(host: str) -> frozenset[str]:
    """The addresses that `host` stands for, as far as they are known without asking anybody."""
    host = host.strip("[]").lower()
    if host == "localhost":
        return _LOCALHOST
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return frozenset({host})
    address = getattr(address, "ipv4_mapped", None) or address
    return frozenset({str(address), ALL_HERE.get(str(address), str(address))})


def _version(address: str) -> int:
    return 6 if ":" in address else 4
