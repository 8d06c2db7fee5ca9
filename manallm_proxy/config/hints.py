"""Suggestions for likely slips, to be appended to messages. They never contain a value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

EMPTY: Final[Mapping[str, str]] = {}
KEYS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("url", "uri", "endpoint", "address", "api_base", "apibase"), "base_url"),
    **dict.fromkeys(("port", "host", "server", "bind"), "listen"),
    **dict.fromkeys(("targets", "models", "fallbacks", "entries"), "chain"),
    **dict.fromkeys(("model", "name", "provider"), "target"),
    **dict.fromkeys(("read", "total"), "first_byte"),
}
WORDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("vllm", "sglang", "tgi", "lmstudio", "lm-studio", "lm_studio", "localai"), "openai"),
    **dict.fromkeys(("llamacpp", "llama.cpp", "llama-cpp", "llama_cpp", "llama-server"), "openai"),
    **dict.fromkeys(("groq", "openrouter", "together", "anthropic", "azure", "mistral", "deepseek", "xai"), "openai"),
    **dict.fromkeys(("gemini", "vertex"), "google"),
    "warn": "warning",
    "fatal": "error",
}
"""Other programs' names for our keys and values."""


def suggestion(word: object, known: Iterable[str], others: Mapping[str, str] = EMPTY) -> str:
    """``" (did you mean 'groq'?)"`` if `word` is similar to a known one, or in `others`; else empty."""
    names = {name.lower(): name for name in known}
    text = str(word)[:256].lower()
    meant = names.get(others.get(text, ""))
    if meant is None:
        from difflib import get_close_matches  # imported with the first mistake, not at the start

        if close := get_close_matches(text, list(names), 1):
            meant = names[close[0]]
    return f" (did you mean '{meant}'?)" if meant is not None else ""


def slip(value: object) -> str:
    """A hint to append if `value` looks like a common slip, else empty. Never contains the value."""
    if not isinstance(value, str):
        return ""
    if re.fullmatch(r"\$[A-Za-z_][A-Za-z0-9_]*", value):
        return " (a variable is written ${NAME})"
    return ""
