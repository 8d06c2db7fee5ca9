"""``GET /openapi.json``: ``openapi.yaml`` with our version, as JSON."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from manallm_proxy import __version__
from manallm_proxy.config import yaml_file
from manallm_proxy.openai.json_object import encode

FILE: Final = Path(__file__).with_name("openapi.yaml")


@cache
def description() -> bytes:
    """The body. Reads the file at the first call, which takes tens of milliseconds: too long for the event loop."""
    mistakes: list[str] = []
    content = yaml_file.read(FILE, {}, mistakes.append)
    if content is None or mistakes:
        raise RuntimeError(f"openapi.yaml: {mistakes}")
    content["info"]["version"] = __version__
    return encode(content)
