"""Targets, and the chains that an alias names.

A *target* is ``provider/model``; everything after the first slash is the model, which may contain more slashes
(``openrouter/anthropic/claude-3-haiku``). A *chain* is an ordered list of entries, each a target with the settings
that apply when it is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import field, frozen

MODEL_LIMIT: Final = 256
"""Max characters of a model's name that is sent to a provider or listed."""


@frozen
class Target:
    """One model of one provider."""

    provider: str
    model: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """``"groq/llama-3.1-8b-instant"`` -> Target. Raises ValueError if provider or model is missing."""
        provider, slash, model = text.partition("/")
        if not (provider and slash and model):
            raise ValueError(f"'{text}' is not of the form provider/model")
        return cls(provider, model)

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@frozen
class Timeouts:
    """Bounds on one attempt, in seconds. There is no total: a healthy stream may run for hours."""

    connect: float = 3.0
    """DNS lookup, TCP and TLS."""
    first_byte: float = 120.0
    """From the start of the attempt to the first event with content."""
    idle: float = 60.0
    """Between two chunks after the commit."""


@frozen
class Entry:
    """One entry of a chain: a target, and how it is tried."""

    target: Target
    timeouts: Timeouts = Timeouts()
    options: Mapping[str, Any] = field(factory=dict)
    """Sent with every request (kind ollama: ``num_ctx``, ``keep_alive``, ...)."""
    fallback_on: frozenset[str] = frozenset()
    """Error classes (``auth``, ...) or statuses (``"409"``) after which the walk moves on, though not retryable."""


@frozen
class Chain:
    """What to try, in order. ``alias`` is the name that the client used, None for a plain ``provider/model``."""

    alias: str | None
    entries: tuple[Entry, ...]
    description: str = ""
    timeout: float = 0.0
    """Max seconds for the whole walk, up to the commit; 0: no limit."""

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
