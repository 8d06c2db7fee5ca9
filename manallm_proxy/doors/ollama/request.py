"""The common part of reading requests to Ollama's endpoints."""

from __future__ import annotations

from typing import Any

from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.openai.json_object import split_object
from manallm_proxy.openai.request import EMBEDDING, made_request, refuse_case_variants
from manallm_proxy.openai.request_fields import Fields, decoded, optional


def read_object(body: bytes) -> Fields:
    """The decoded body. Raises InvalidRequest unless it is a JSON object without duplicate keys."""
    refuse_case_variants(split_object(body)[0])
    return decoded(body)


def door_call(
    endpoint: Endpoint, asked: Fields, fields: dict[str, Any], ollama: Fields, client: Client, *, large: bool
) -> Call:
    """The call for `fields` in OpenAI's format, streamed unless `asked` disables that. `ollama`: see ``Call``.

    `large`: whether the request is large, so that encoding it takes long too.
    """
    fields = {"model": optional(asked, "model", str) or "", **fields}
    if endpoint is not Endpoint.EMBEDDINGS:
        fields["stream"] = optional(asked, "stream", bool) is not False
    key = {Endpoint.CHAT: "messages", Endpoint.COMPLETIONS: "prompt", Endpoint.EMBEDDINGS: "input"}[endpoint]
    need = EMBEDDING if endpoint is Endpoint.EMBEDDINGS else None
    try:
        body, summary = made_request(fields, (key, (str, list)), need, large=large)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    return Call(endpoint, summary, body, client.request_id, relays=False, ollama=ollama)
