"""Which origins may call: a pure decision about the value of one ``Origin`` header.

A browser sends ``Origin`` for a web page, and the page cannot choose it: it is where the page was loaded from. So a
page whose origin is this machine or an installed app was put there by the user, and may call without being listed;
any other page has to be listed under ``cors.origins``. Ollama allows the same by default (``AllowedOrigins`` in its
envconfig/config.go), so what works with Ollama works here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import Final

_APP: Final = re.compile(r"(?:app|file|tauri|vscode-file|vscode-webview)://[\x21-\x7e]*")
"""Electron, Tauri and VS Code. ``file:`` is Electron's too: a browser sends ``null`` for a file."""
_HOST: Final = re.compile(r"https?://(?:(?P<name>[a-z0-9.-]+)|\[(?P<ip>[0-9a-f:.]+)\])(?::[0-9]{1,5})?", re.IGNORECASE)


def allowed_origin(origin: str, configured: Collection[str]) -> bool:
    """Whether a page of `origin` may call: it is in `configured` (``*`` is any), on this machine, or an app.

    ``null`` is allowed only where it is configured: any page gets that origin for a sandboxed frame.
    """
    if not origin:
        return False
    if "*" in configured or origin in configured or _APP.fullmatch(origin) is not None:
        return True
    match = _HOST.fullmatch(origin)
    return match is not None and _is_this_machine(match["name"] or match["ip"])


def _is_this_machine(host: str) -> bool:
    """``localhost`` and names below it (RFC 6761, section 6.3), 127.0.0.0/8, ::1, and 0.0.0.0, which Ollama allows."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower()
        return name == "localhost" or re.fullmatch(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*\.localhost", name) is not None
    return address.is_loopback or host == "0.0.0.0"  # noqa: S104 # compared, not bound
