"""The TLS of connections to providers."""

from __future__ import annotations

import functools
import ssl


@functools.cache
def context(verify: bool, protocol: str = "") -> ssl.SSLContext:
    """Shared by all providers, because reading the certificates takes 20 ms and a MiB.

    `protocol`: offered by its name (ALPN).
    """
    made = ssl.create_default_context()
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    if protocol:
        made.set_alpn_protocols((protocol,))
    return made
