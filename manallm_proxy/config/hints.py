"""Suggestions of what was most likely meant, for the end of a message. None of them shows a value."""

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
"""What others call our keys, and our words for a value."""


def suggestion(word: object, known: Iterable[str], others: Mapping[str, str] = EMPTY) -> str:
    """``" (did you mean 'groq'?)"`` if `word` is close to a known one, or one of the `others` means it; else empty."""
    names = {name.lower(): name for name in known}
    text = str(word)[:256].lower()
    meant = names.get(others.get(text, ""))
    if meant is None:
        from difflib import get_close_matches  # with the first mistake, not with the start

        if close := get_close_matches(text, list(names), 1):
            meant = names[close[0]]
    return f" (did you mean '{meant}'?)" if meant is not None else ""


def slip(value: object) -> str:
    """A hint if `value` looks like a common slip, else empty. For the end of a message; it never shows the value."""
    if not isinstance(value, str):
        return ""
    if re.fullmatch(r"\$[A-Za-z_][A-Za-z0-9_]*", value):
        return " (a variable is written ${NAME})"
    return ""
