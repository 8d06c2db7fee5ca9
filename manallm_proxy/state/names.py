"""How names in Redis begin."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "manallm:1:"
"""All of ours. Another version of what stands there is another prefix."""
