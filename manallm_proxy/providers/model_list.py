"""Reads a provider's model list, and never fails: a probe that gets a web page has still reached the provider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from manallm_proxy.contract.provider import ModelInfo, ModelList
from manallm_proxy.contract.targets import is_model_name
from manallm_proxy.openai.json_object import DecodeErrors, decode

LIST_LIMIT: Final = 8 << 20
"""Max bytes of a list; the longest known one, OpenRouter's 400 models, takes one."""
MODELS_LIMIT: Final = 10_000
WORDS_LIMIT: Final = 64
"""Max aliases, capabilities or parameters of one model."""

TOO_LONG: Final = f"it is over {LIST_LIMIT >> 20} MiB"
TOO_MANY: Final = f"it has over {MODELS_LIMIT} models, the rest is ignored"
CUT_SHORT: Final = "it broke off, or took too long"
ODD_ROWS: Final = "it has rows that are no models"

_BOM: Final = b"\xef\xbb\xbf"
_Row = TypeVar("_Row", bound=msgspec.Struct)


def read_list(body: bytes, key: str, row_type: type[_Row], to_model: Callable[[_Row], ModelInfo | None]) -> ModelList:
    """The models under `key`, or of a bare list. Leaves out rows that `row_type` or `to_model` reject."""
    try:
        found = decode(body.removeprefix(_BOM), type=dict[str, msgspec.Raw] | list[msgspec.Raw])
        rows = found if isinstance(found, list) else decode(found[key], type=list[msgspec.Raw] | None) or []
    except (*DecodeErrors, KeyError):
        return ModelList(fault="it is empty" if not body.strip() else "it is no list of models")
    models: list[ModelInfo] = []
    for row in rows[:MODELS_LIMIT]:
        try:
            model = to_model(decode(row, type=row_type))
        except DecodeErrors:
            model = None
        if model is not None and is_model_name(model.id):
            models.append(model)
    fault = TOO_MANY if len(rows) > MODELS_LIMIT else ODD_ROWS if len(models) < len(rows) else None
    return ModelList(tuple(models), fault)


def words(value: object) -> frozenset[str] | None:
    """The names in a list, as a set; None if there are none, or `value` is no list."""
    if not isinstance(value, list):
        return None
    return frozenset(word for word in value[:WORDS_LIMIT] if isinstance(word, str) and is_model_name(word)) or None
