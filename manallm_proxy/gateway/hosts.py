"""Which ``Host`` may be asked for, where a web page could ask for another: on loopback, without client keys.

A page whose name's address becomes 127.0.0.1 (DNS rebinding) is of the same origin as the proxy for its browser, which
sends no ``Origin`` with a GET then. Its ``Host`` tells: it is the page's own name, which we do not have.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import Final

_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]*))(?::[0-9]{1,5})?", re.IGNORECASE)


def is_ours(host: str, address: str, configured: Collection[str]) -> bool:
    """Whether the value of ``Host`` is this machine, `address`, at which it was asked, or `configured` (``*``: any).

    A name without a dot is one of the local network or of this machine: no page on the web has such a name. Without a
    host there is no browser.
    """
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = (match[1] or match[2] or "").lower().rstrip(".")
    if "*" in configured or name in configured:
        return True
    try:
        given = ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(".localhost")
    return given.is_loopback or str(given) == address.partition("%")[0]
