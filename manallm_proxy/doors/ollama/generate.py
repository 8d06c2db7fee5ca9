"""``POST /api/generate``: the prompt as a chat of one turn, or as a bare completion (``raw``, ``suffix``)."""

from __future__ import annotations

from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.doors.ollama.chat import load_answer
from manallm_proxy.doors.ollama.errors import ollama_error_body
from manallm_proxy.doors.ollama.messages import content_of, places_of
from manallm_proxy.doors.ollama.reply import GenerateReply
from manallm_proxy.doors.ollama.request import door_call, read_object_texts
from manallm_proxy.doors.ollama.settings import CALLED_HERE, Settings, read_settings
from manallm_proxy.doors.openai_reply import no_headers
from manallm_proxy.openai.caller_paths import CallerPaths, Origins
from manallm_proxy.openai.large import is_large
from manallm_proxy.openai.request_fields import Fields, optional


class OllamaGenerateDoor:
    """See `door.Door`."""

    name = "api/generate"
    scans = False
    error_body = staticmethod(ollama_error_body)
    headers = staticmethod(no_headers)

    def read(self, body: bytes, client: Client) -> tuple[Call, GenerateReply]:
        asked, texts = read_object_texts(body, "prompt", "system", "suffix", "images")
        _refuse_unsupported(asked)
        model = optional(asked, "model", str) or ""
        prompt, suffix = optional(asked, "prompt", str) or "", optional(asked, "suffix", str) or ""
        settings = read_settings(asked)
        large, write = is_large(body), texts.encode_whole
        if optional(asked, "raw", bool) or suffix:
            fields = _completion(asked, prompt, suffix, settings)
            kept = settings.ollama | ({"raw": True} if asked.get("raw") else {})
            call = door_call(Endpoint.COMPLETIONS, asked, fields, kept, client, large=large, encode_large=write)
        else:
            fields = {"messages": _messages(asked, prompt), **settings.fields}
            call = door_call(Endpoint.CHAT, asked, fields, settings.ollama, client, large=large, encode_large=write)
        call.translate_error = CallerPaths("prompt", _origins(asked, prompt), CALLED_HERE).translate_error
        if not prompt and not suffix:
            call.answer, call.summary.stream = load_answer(asked), False
        return call, GenerateReply(model)


def _messages(asked: Fields, prompt: str) -> list[Fields]:
    system = optional(asked, "system", str)
    content = content_of(prompt, optional(asked, "images", list), "")
    turn = {"role": "user", "content": content}
    return [{"role": "system", "content": system}, turn] if system else [turn]


def _origins(asked: Fields, prompt: str) -> Origins:
    """The origins of the messages that `_messages` makes."""
    origins = Origins()
    if asked.get("system"):
        origins.add("system")
    origins.add("prompt", places_of(prompt, asked.get("images"), "", "prompt"))
    return origins


def _completion(asked: Fields, prompt: str, suffix: str, settings: Settings) -> Fields:
    """A legacy completion, without template or turns: only the prompt, or the text before and after a gap."""
    if asked.get("raw") and optional(asked, "system", str):
        raise InvalidRequest("raw mode does not support 'system': put it into the prompt", param="system")
    if optional(asked, "images", list):
        raise InvalidRequest("'images' go with a prompt of its own: leave 'raw' and 'suffix' out", param="images")
    fields: Fields = {"prompt": prompt, **settings.fields}
    if suffix:
        fields["suffix"] = suffix
    if fields.pop("logprobs", False):
        fields["logprobs"] = fields.pop("top_logprobs", 0)  # a number in legacy completions
    fields.pop("reasoning_effort", None)
    return fields


def _refuse_unsupported(asked: Fields) -> None:
    """Raises InvalidRequest for fields that change the answer, but that only Ollama itself supports."""
    if optional(asked, "template", str):
        raise InvalidRequest("a model's template cannot be changed through this proxy: leave it out", param="template")
    for key in ("width", "height", "steps"):
        if optional(asked, key, int):
            raise InvalidRequest(f"'{key}' is of a generated image: ask for one at /v1/images/generations", param=key)
    if optional(asked, "context", list):
        raise InvalidRequest("'context' is not kept here: send the conversation to /api/chat", param="context")
