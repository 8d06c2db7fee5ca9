"""``extra_body.google``: what Google's own OpenAI endpoint takes beside OpenAI's fields.

Form and names are that endpoint's (ai.google.dev/gemini-api/docs/openai): its clients only change the URL.
"""

from __future__ import annotations

from typing import Final

from attrs import field

from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.contract.records import frozen
from manallm_proxy.openai.request_fields import Fields, all_of, optional

_PATH: Final = "extra_body.google"
_THINKING: Final[dict[str, tuple[str, type]]] = {
    "include_thoughts": ("includeThoughts", bool),
    "thinking_budget": ("thinkingBudget", int),
    "thinking_level": ("thinkingLevel", str),
}
_KNOWN: Final = frozenset({"thinking_config", "cached_content", "safety_settings"})


@frozen
class GoogleFields:
    """``thinking``: members of ``thinkingConfig``; ``top``: of the request."""

    thinking: Fields = field(factory=dict)
    top: Fields = field(factory=dict, repr=False)


def google_fields(asked: Fields) -> GoogleFields:
    """Raises InvalidRequest for a wrong type, and Unsupported for a member that is not translated."""
    body = asked.get("extra_body")
    given = optional(body, "google", dict, "extra_body.") if isinstance(body, dict) else None
    if not given:
        return GoogleFields()
    if unknown := next(iter(given.keys() - _KNOWN), None):
        raise Unsupported(
            f"'{_PATH}' is read as far as {', '.join(sorted(_KNOWN))}: '{unknown[:40]}' is not", param=_PATH
        )
    path = f"{_PATH}.thinking_config."
    config = optional(given, "thinking_config", dict, f"{_PATH}.") or {}
    if unknown := next(iter(config.keys() - _THINKING.keys()), None):
        raise Unsupported(f"'{path[:-1]}' has {', '.join(sorted(_THINKING))}, and no '{unknown[:40]}'", param=path[:-1])
    values = ((name, optional(config, key, kind, path)) for key, (name, kind) in _THINKING.items())
    thinking = {name: value.upper() if isinstance(value, str) else value for name, value in values if value is not None}
    top: Fields = {}
    if (cached := optional(given, "cached_content", str, f"{_PATH}.")) is not None:
        top["cachedContent"] = cached
    if (settings := optional(given, "safety_settings", list, f"{_PATH}.")) is not None:
        top["safetySettings"] = all_of(dict, settings, f"{_PATH}.safety_settings")
    return GoogleFields(thinking, top)
