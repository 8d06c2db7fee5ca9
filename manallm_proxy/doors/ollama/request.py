"""What the requests of all of Ollama's endpoints have in common."""

from __future__ import annotations

from typing import Any

from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.openai.json_object import split_object
from manallm_proxy.openai.request import EMBEDDING, made_request, refuse_case_variants
from manallm_proxy.openai.request_fields import Fields, decoded, optional


def read_object(body: bytes) -> Fields:
    """The body. Raises InvalidRequest for what is no JSON object, or has a key twice."""
    refuse_case_variants(split_object(body)[0])
    return decoded(body)


def door_call(
    endpoint: Endpoint, asked: Fields, fields: dict[str, Any], ollama: Fields, client: Client, *, large: bool
) -> Call:
    """The call for `fields` in OpenAI's format, streamed unless `asked` says otherwise. `ollama`: see ``Call``.

    `large`: the request is, and to write it as well.
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
