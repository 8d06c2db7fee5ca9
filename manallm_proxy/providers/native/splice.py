"""Replaces members of a JSON object. All others keep their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from manallm_proxy.openai.json_object import DecodeErrors, encode, encode_whole
from manallm_proxy.openai.sliced import LARGE_BYTES
from manallm_proxy.providers.openai.reply import reply_object

_OBJECT: Final[msgspec.json.Decoder[dict[str, Any]]] = msgspec.json.Decoder(dict[str, msgspec.Raw])


def members(data: bytes) -> dict[str, Any]:
    """The members of the JSON object `data`, not decoded. Raises BadResponse if it is none."""
    if len(data) > LARGE_BYTES:
        return reply_object(data)[0]
    try:
        return _OBJECT.decode(data)
    except (msgspec.ValidationError, *DecodeErrors):
        return reply_object(data)[0]  # lenient: accepts what other parsers accept, or raises with the reason


def with_values(values: dict[str, Any], new: Mapping[str, bytes]) -> bytes:
    """The JSON object of `values`, updated by the JSON of `new`. Modifies `values`."""
    values.update(zip(new, map(msgspec.Raw, new.values()), strict=True))
    return encode(values) if sum(map(len, values.values())) <= LARGE_BYTES else encode_whole(values)


def begins(value: Any, bracket: bytes) -> bool:
    """Whether `value`, of an object's members, is a list or an object, as `bracket` says."""
    return memoryview(value)[:1] == bracket
