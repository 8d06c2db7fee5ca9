"""A complete answer of an OpenAI-compatible server, checked before it is passed on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.openai.schema import DecodeErrors, decode, split_object
from manallm_proxy.providers.classify import in_band, parse_error


def set_model(data: bytes, span: tuple[int, int] | None, model: bytes) -> bytes:
    """The JSON object `data` with its ``model`` (at `span`, None: it has none) as the JSON string `model`."""
    if span is None:
        brace = data.index(b"{") + 1
        comma = b"" if data[brace:].lstrip()[:1] == b"}" else b","
        return data[:brace] + b'"model":' + model + comma + data[brace:]
    return data[: span[0]] + model + data[span[1] :]


def reply_object(body: bytes, last: str | None = None) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """See `split_object`; whatever is wrong is the provider's."""
    try:
        return split_object(body, last)
    except InvalidRequest:
        detail = "empty body" if not body.strip() else "html" if body.lstrip()[:1] == b"<" else "not a JSON object"
        raise BadResponse(f"its answer is not what was asked for ({detail})", detail=detail) from None


def decoded(raw: Any) -> Any:
    """A part of an answer. Its syntax was checked, but a number in it may be one that nobody can read."""
    try:
        return decode(raw)
    except DecodeErrors:
        raise BadResponse("its answer is not what was asked for (an unreadable value)", detail="broken JSON") from None


def refuse_error(values: Mapping[str, Any]) -> None:
    """A 200 with an error inside, as OpenRouter sends it."""
    if bytes(values.get("error", b"null")) != b"null":
        raise in_band(parse_error({"error": decoded(values["error"])}))


def refuse_choice_error(choices: Any) -> None:
    """OpenRouter's non-stream form: ``choices[0].error``, perhaps after partial content."""
    for choice in choices:
        if isinstance(choice, dict) and choice.get("error"):
            raise in_band(parse_error({"error": choice["error"]}))


def require_list(values: Mapping[str, Any], key: str) -> None:
    if bytes(values.get(key, b"null"))[:1] != b"[":
        raise BadResponse(f"its answer has no '{key}'", detail=f"no {key}")
