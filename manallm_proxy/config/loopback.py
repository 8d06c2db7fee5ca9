"""Which hosts are this machine."""

from __future__ import annotations

import ipaddress
from typing import Final

ALL_HERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared and asked, never bound
"""Where a server listens that listens on all addresses of this machine, and the address by which it is asked here."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`: 127.0.0.0/8, ::1, localhost."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
