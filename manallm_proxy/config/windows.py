"""Checks that all entries for one model of an Ollama load it with the same settings, its context window above all.

Ollama reloads a model if a request's runner options differ from those it was loaded with. Two entries with different
windows would make it reload for ever, while every request still looks fine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from manallm_proxy.config.model import ModelKey, ProviderConfig, model_key
from manallm_proxy.config.structure import Mistakes
from manallm_proxy.contract.targets import LOADED_WITH, Entry

_ONE_VALUE: Final = (*LOADED_WITH, "keep_alive")


def windows_of(
    entries: Iterable[tuple[str, Entry]], providers: Mapping[str, ProviderConfig], mistakes: Mistakes
) -> dict[ModelKey, dict[str, Any]]:
    """The settings that each model is loaded with, from all `entries` (path, entry). A second value is a mistake.

    An entry that omits a setting gets another entry's value, since the model's default would be a second value.
    """
    found: dict[ModelKey, dict[str, tuple[str, Any]]] = {}
    for path, entry in entries:
        provider = providers[entry.target.provider]
        if provider.kind != "ollama":
            continue
        known = found.setdefault(model_key(provider, entry.target.model), {})
        for name in _ONE_VALUE:
            value = entry.options.get(name)
            if value is None:
                continue
            place, first = known.setdefault(name, (path, value))
            if first != value:
                mistakes.add(f"{path}.options.{name}", _two_values(entry, name, value, place, first))
    return {key: {name: value for name, (_, value) in known.items()} for key, known in found.items()}


def _two_values(entry: Entry, name: str, value: object, place: str, first: object) -> str:
    effect = "would stay for one time or the other" if name == "keep_alive" else "would be loaded anew in turns"
    return f"is {value} here and {first} at {place}, and the model {effect}: give {name} one value for {entry.target}"
