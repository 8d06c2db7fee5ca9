"""How much a client wants a model to think, in all forms of a chat, for dialects that have other ones."""

from __future__ import annotations

from typing import Any, Final

from manallm_proxy.contract.records import frozen
from manallm_proxy.openai.request_fields import Fields, optional, typed

_MEDIUM_FROM, _HIGH_FROM = 4096, 16384
"""Min thinking budgets, in tokens, that count as medium and as high effort."""
_OLDER: Final = "reasoning_effort"


@frozen
class Reasoning:
    """What was asked for. ``effort`` None: the model decides; ``path``: where the effort stands in the request."""

    effort: str | None = None
    path: str = _OLDER
    budget: int | None = None
    """Max tokens of thinking, from which ``effort`` was taken; None if the client named an effort."""
    is_on: bool = False
    """Whether thinking was asked for without an effort."""
    is_hidden: bool = False
    """Whether the client does not want to see it."""


def wanted_reasoning(asked: Fields) -> Reasoning:
    """OpenRouter's ``reasoning``, which Open WebUI sends, else ``reasoning_effort``, else what other servers read.

    Raises InvalidRequest.
    """
    given: Any = asked.get("reasoning")
    if not isinstance(given, dict):
        effort = _effort(asked.get(_OLDER), _OLDER)
        thinks = _template_thinks(asked) if effort is None else None
        return Reasoning("none" if thinks is False else effort, is_on=thinks is True)
    path = "reasoning."
    hidden = optional(given, "exclude", bool, path) is True
    if (effort := _effort(given.get("effort"), path + "effort")) is not None:
        return Reasoning(effort, path + "effort", is_hidden=hidden)
    budget = optional(given, "max_tokens", int, path)
    enabled = optional(given, "enabled", bool, path)
    if enabled is False or budget == 0:
        return Reasoning("none", path + "enabled")
    if budget is not None:
        return Reasoning(effort_of_budget(budget), path + "max_tokens", budget, is_hidden=hidden)
    return Reasoning(_effort(asked.get(_OLDER), _OLDER), is_on=enabled is True, is_hidden=hidden)


def _template_thinks(asked: Fields) -> bool | None:
    """What vLLM and llama.cpp are told by ``chat_template_kwargs`` of a model that may think; None: nothing."""
    settings = asked.get("chat_template_kwargs")
    found = [settings.get(key) for key in ("enable_thinking", "thinking")] if isinstance(settings, dict) else []
    return next((value for value in found if isinstance(value, bool)), None)


def effort_of_budget(tokens: int) -> str:
    """The effort that a budget of so many tokens of thinking corresponds to."""
    return "low" if tokens < _MEDIUM_FROM else "medium" if tokens < _HIGH_FROM else "high"


def _effort(value: object, path: str) -> str | None:
    return None if value is None or value == "" else str(typed(str, value, path))
