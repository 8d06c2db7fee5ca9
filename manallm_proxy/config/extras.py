"""How to get an optional package of ours into the environment that runs: pip may be another's, or not there at all."""

from __future__ import annotations

import shlex
import sys
from importlib.util import find_spec


def how_to_install(extra: str) -> str:
    """The command that adds the libraries of `extra` (pyproject.toml) to this environment."""
    if find_spec("pip") is not None:
        return f"{shlex.quote(sys.executable)} -m pip install 'manallm-proxy[{extra}]'"
    return f"install the proxy again with it ('make install EXTRAS={extra}'; by pipx or uv 'WHEEL[{extra}]')"
