"""Translates Ollama's settings into OpenAI's, and keeps those that only another Ollama understands."""

from __future__ import annotations

from typing import Any, Final

from manallm_proxy.contract.records import frozen
from manallm_proxy.openai.request_fields import Fields, optional, texts_of, wrong
from manallm_proxy.openai.tool_choice import function_tools

_OPTIONS: Final[dict[str, tuple[str, type]]] = {
    "num_predict": ("max_tokens", int),
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "seed": ("seed", int),
    "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float),
}
"""``options`` that other providers support: OpenAI's name and the type."""
CALLED_HERE: Final = {
    **{name: f"options.{ours}" for ours, (name, _) in _OPTIONS.items()},
    "stop": "options.stop",
    "response_format": "format",
    "reasoning_effort": "think",
    "max_completion_tokens": "options.num_predict",
}
"""OpenAI's fields -> their names in Ollama's API."""
_EFFORTS: Final = ("low", "medium", "high", "max")


@frozen
class Settings:
    """``fields`` of an OpenAI body, and ``ollama`` for providers of that kind (see `provider.Call`)."""

    fields: Fields
    ollama: Fields


def read_settings(asked: Fields) -> Settings:
    """The settings in `asked`. Raises InvalidRequest, with ``param``, for a wrong type."""
    fields: Fields = {}
    ollama: Fields = {}
    rest: Fields = {}
    for name, value in (optional(asked, "options", dict) or {}).items():
        known = _OPTIONS.get(name)
        if value is None:
            continue
        if name == "stop":
            if stops := _stops(value):
                fields["stop"] = stops
        elif known is None:
            rest[name] = value
        else:
            number = optional({name: value}, name, known[1], "options.")
            if name == "num_predict" and number <= 0:
                rest |= {name: number} if number else {}  # no limit, which is the default elsewhere
            else:
                fields[known[0]] = number
    if rest:
        ollama["options"] = rest
    ollama |= {key: value for key in ("truncate", "shift") if (value := optional(asked, key, bool)) is not None}
    if (alive := asked.get("keep_alive")) is not None:
        ollama["keep_alive"] = alive if isinstance(alive, str) else optional(asked, "keep_alive", float)
    return Settings(fields | _format(asked) | _logprobs(asked) | _thinking(asked, ollama), ollama)


def tools_of(asked: Fields) -> Fields:
    """``tools`` unchanged, since they have OpenAI's form. An empty list, which ollama-python always sends, is none."""
    tools = function_tools(asked)
    return {"tools": [{"type": "function", **tool} for tool in tools]} if tools else {}


def _format(asked: Fields) -> Fields:
    """``format``: ``"json"`` or a schema, which gets a name, since OpenAI requires one."""
    wanted = asked.get("format")
    if wanted in (None, "", {}):
        return {}
    if wanted == "json":
        return {"response_format": {"type": "json_object"}}
    if not isinstance(wanted, dict):
        raise wrong("format", "'json' or a JSON schema")
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}}


def _thinking(asked: Fields, ollama: Fields) -> Fields:
    """``think`` as ``reasoning_effort``; providers of kind Ollama get it unchanged, and may refuse it."""
    think = asked.get("think")
    if think is None or think == "":
        return {}
    if not isinstance(think, bool) and think not in _EFFORTS:
        raise wrong("think", "true, false, 'low', 'medium', 'high' or 'max'")
    ollama["think"] = think
    return {"reasoning_effort": "medium" if think is True else think or "none"}


def _logprobs(asked: Fields) -> Fields:
    fields: Fields = {"logprobs": True} if optional(asked, "logprobs", bool) else {}
    top = optional(asked, "top_logprobs", int)
    return fields | ({"top_logprobs": top} if fields and top is not None else {})


def _stops(value: Any) -> list[str]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise wrong("options.stop", "a string or an array of strings")
    return [stop for stop in texts_of(value, "options.stop") if stop]
