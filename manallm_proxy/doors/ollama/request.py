"""The common part of reading requests to Ollama's endpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.openai.json_object import encode_whole, split_object
from manallm_proxy.openai.request import EMBEDDING, made_request, refuse_case_variants
from manallm_proxy.openai.request_fields import Fields, decoded, optional
from manallm_proxy.openai.stand_ins import StandIns, read_texts


def read_object(body: bytes) -> Fields:
    """The decoded body. Raises InvalidRequest unless it is a JSON object without duplicate keys."""
    refuse_case_variants(split_object(body)[0])
    return decoded(body)


def read_object_texts(body: bytes, *keys: str) -> tuple[Fields, StandIns]:
    """As `read_object`, with stand-ins in the values of `keys`."""
    values, spans = split_object(body)
    refuse_case_variants(values)
    return read_texts(body, keys, spans)


def door_call(
    endpoint: Endpoint,
    asked: Fields,
    fields: dict[str, Any],
    ollama: Fields,
    client: Client,
    *,
    large: bool,
    encode_large: Callable[[Any], bytes] = encode_whole,
) -> Call:
    """The call for `fields` in OpenAI's format, streamed unless `asked` disables that. `ollama`: see ``Call``.

    `large`: whether the request is large, so that encoding it takes long too; then it is done by `encode_large`.
    """
    fields = {"model": optional(asked, "model", str) or "", **fields}
    if endpoint is not Endpoint.EMBEDDINGS:
        fields["stream"] = optional(asked, "stream", bool) is not False
    key = {Endpoint.CHAT: "messages", Endpoint.COMPLETIONS: "prompt", Endpoint.EMBEDDINGS: "input"}[endpoint]
    need = EMBEDDING if endpoint is Endpoint.EMBEDDINGS else None
    try:
        body, summary = made_request(fields, (key, (str, list)), need, large=large, encode_large=encode_large)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    return Call(endpoint, summary, body, client.request_id, relays=False, ollama=ollama)
