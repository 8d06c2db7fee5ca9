"""Names of functions that a server takes in place of those that it refuses.

OpenAI takes 64 letters, digits, hyphens and underscores, Gemini 64 characters of which the first is no digit; MCP
servers have tools such as ``21st_magic_component_builder``, and Claude Code puts the server's name before them.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

LONGEST: Final = 64
_ODD: Final = re.compile(r"[^A-Za-z0-9_-]")
_DIGEST: Final = 8


def sent_name(name: str) -> str:
    """`name`, or a shorter one if it is too long for OpenAI."""
    return name if len(name) <= LONGEST else short_name(name)


def short_name(name: str) -> str:
    """A name that all servers take, always the same for `name`: its beginning, and a hash."""
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_DIGEST]
    begin = _ODD.sub("_", name[:LONGEST])
    begin = begin if begin[:1].isalpha() or begin[:1] == "_" else f"_{begin}"
    return f"{begin[: LONGEST - _DIGEST - 1]}_{digest}"
