"""Merges the operator's and the client's settings for Ollama: ``options``, and related top-level fields.

One client's settings may affect all others: another window reloads the model for everybody, ``num_gpu: 0`` keeps it on
the CPU until it is unloaded, ``keep_alive: 0`` unloads it. So only the operator may set these, unless the provider has
``client_options: true``; even then the operator's values win.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from manallm_proxy.contract.provider import Endpoint
from manallm_proxy.contract.targets import LOADED_WITH, OPTION_KINDS, SMALLEST_WINDOW
from manallm_proxy.openai.reasoning import wanted_reasoning
from manallm_proxy.openai.request_fields import Fields, optional, texts_of, typed, wrong

_OLD_RUNNER_OPTIONS: Final = ("numa", "num_gqa", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock")
"""Runner options of versions before 0.12."""
OPERATORS: Final = (*LOADED_WITH, *_OLD_RUNNER_OPTIONS, "keep_alive")
"""Options that a client may set only with ``client_options``, since they affect every client of the model."""

_SAMPLING: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
    "stop": "stop",
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",  # after max_tokens, which it replaced: the later one in this order wins
}
_TOP_LEVEL: Final = ("keep_alive", "think", "truncate", "shift")
"""Settings that Ollama reads at the top level, not in ``options``."""

_THINK: Final[dict[str, bool | str]] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}
"""OpenAI's ``reasoning_effort`` -> ``think`` (openai/openai.go thinkFromReasoningEffort)."""


def settings(
    asked: Fields, operators: Mapping[str, Any], endpoint: Endpoint, *, allowed: bool, remarks: list[str]
) -> Fields:
    """``options`` and the top-level settings: the `operators` defaults, overridden by what the client sets.

    For options that affect every client (`OPERATORS`) the operator's value wins, and the client's counts only if
    `allowed`. Adds what was left out to `remarks`. A prompt that does not fit is an error, unless ``truncate`` is set.
    """
    theirs = {k: v for k, v in operators.items() if v is not None}
    clients = {**({} if endpoint is Endpoint.EMBEDDINGS else _sampling(asked)), **_client_options(asked)}
    clients |= _top_level(asked)
    ignored = [k for k in clients if k in OPERATORS and (k in theirs or not allowed) and clients[k] != theirs.get(k)]
    remarks += [f"ignored: {k}" for k in ignored]
    if "num_ctx" not in ignored and clients.get("num_ctx", SMALLEST_WINDOW) < SMALLEST_WINDOW:
        raise wrong("options.num_ctx", f"at least {SMALLEST_WINDOW}: Ollama would load the model for all with that")
    merged: Fields = {"truncate": False, **theirs, **{k: v for k, v in clients.items() if k not in ignored}}
    fields: Fields = {k: merged.pop(k) for k in _TOP_LEVEL if k in merged}
    if endpoint is Endpoint.EMBEDDINGS:
        fields = {k: v for k, v in fields.items() if k in ("keep_alive", "truncate")}
    if merged:
        fields["options"] = merged
    return fields


def _sampling(asked: Fields) -> Fields:
    given = ((key, name) for key, name in _SAMPLING.items() if asked.get(key) is not None)
    return {name: _option(name, asked[key], key) for key, name in given}


def _client_options(asked: Fields) -> Fields:
    """The client's own ``options``, without Ollama's top-level settings."""
    given = optional(asked, "options", dict) or {}
    return {k: _option(k, v, f"options.{k}") for k, v in given.items() if v is not None and k not in _TOP_LEVEL}


def _option(name: str, value: object, path: str) -> Any:
    if name == "stop":
        return [value] if isinstance(value, str) else texts_of(_stops(value, path), path)
    if name == "num_predict" and value == 0 and not isinstance(value, bool):
        raise wrong(path, "at least 1: Ollama takes 0 for no limit")
    kind = OPTION_KINDS.get(name)
    return value if kind is None else typed(kind, value, path)


def _stops(value: object, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong(path, "a string or an array of strings")
    return value


def _top_level(asked: Fields) -> Fields:
    ours: Fields = {}
    for key in ("truncate", "shift"):
        if (value := optional(asked, key, bool)) is not None:
            ours[key] = value
    if (alive := asked.get("keep_alive")) is not None:
        ours["keep_alive"] = alive if isinstance(alive, str) else typed(float, alive, "keep_alive")
    if (think := _think(asked)) is not None:
        ours["think"] = think
    return ours


def _think(asked: Fields) -> bool | str | None:
    """``think``, only if the client sets it: a model that does not think answers 400 to anything but false."""
    think = asked.get("think")
    if think is not None:
        if isinstance(think, bool) or (isinstance(think, str) and think in ("low", "medium", "high", "max")):
            return think
        raise wrong("think", "true, false, 'low', 'medium', 'high' or 'max'")
    wanted = wanted_reasoning(asked)
    if wanted.effort is None:
        return True if wanted.is_on else None
    if wanted.effort not in _THINK:
        raise wrong(wanted.path, " or ".join(repr(e) for e in _THINK))
    return _THINK[wanted.effort]
