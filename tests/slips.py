"""A sound configuration, and what people write in its place: the table in ``slips.txt``."""

from __future__ import annotations

from pathlib import Path

PROXY = """\
listen:
  port: 3025
providers:
  ollama:
    kind: ollama
    base_url: http://127.0.0.1:11434
  groq:
    kind: openai
    base_url: https://api.groq.com/openai/v1
    api_key: ${GROQ_API_KEY}
default_provider: ollama
"""
ALIASES = """\
aliases:
  mana/fast:
    description: quick
    chain:
      - ollama/qwen2.5:7b
      - groq/llama-3.1-8b-instant
default: mana/fast
"""


def slips() -> list[tuple[str, str, tuple[str, ...]]]:
    """The table in ``slips.txt``, in which line ends and the like are written as Python does."""
    rows = []
    for block in (Path(__file__).parent / "slips.txt").read_text().strip().split("\n\n")[1:]:
        first, *wanted = block.splitlines()
        old, new = (part.encode().decode("unicode_escape") for part in first.split("  =>  "))
        rows.append((old, "" if new == "(nothing)" else new, tuple(map(str.strip, wanted))))
    return rows


def slipped(old: str, new: str) -> tuple[str, str]:
    """Both files with one slip in one of them."""
    proxy = PROXY.replace(old, new, 1)
    aliases = ALIASES if proxy != PROXY else ALIASES.replace(old, new, 1)
    assert (proxy, aliases) != (PROXY, ALIASES)
    return proxy, aliases
