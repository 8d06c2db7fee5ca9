"""Replaces members of an object, or of one inside of it, and leaves every other byte as it was."""

from __future__ import annotations

from collections.abc import Mapping

from manallm_proxy.openai.request import spliced
from manallm_proxy.providers.openai.reply import reply_object


def with_values(data: bytes, values: Mapping[str, bytes]) -> bytes:
    """The JSON object `data` with the JSON `values` in place of its own. Raises BadResponse if it is none."""
    return spliced(data, reply_object(data)[1], values)


def within(data: bytes, key: str, values: Mapping[str, bytes]) -> bytes:
    """`data` with its member `key` changed in this way; as it is where that is no object."""
    span = reply_object(data)[1].get(key)
    if span is None or data[span[0] : span[0] + 1] != b"{":
        return data
    return data[: span[0]] + with_values(data[slice(*span)], values) + data[span[1] :]
