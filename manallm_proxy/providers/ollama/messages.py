"""Translates OpenAI's chat messages into Ollama's (ollama api/types.go, Message).

There ``content`` is one string, images are a separate member, and the arguments of a tool call are an object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from attrs import field

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.contract.records import define
from manallm_proxy.openai.assistant_message import assistant_content, shown_images
from manallm_proxy.openai.base64_text import first_bytes
from manallm_proxy.openai.joined import joined_lines
from manallm_proxy.openai.json_object import object_bytes
from manallm_proxy.openai.request_fields import (
    NO_OBJECT,
    Fields,
    all_of,
    data_uri,
    image_url,
    optional,
    required,
    typed,
    wrong,
)

_IMAGE_TYPES: Final = ("", "image/jpeg", "image/jpg", "image/png", "image/webp")
_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


@define
class _Talk:
    object_bytes: Callable[[str], bytes | None]
    called: dict[str, str] = field(factory=dict)
    """Id of a tool call -> its name; for a repeated id the last one."""
    has_broken_arguments: bool = False


def translate(
    messages: list[Any], remarks: list[str], object_bytes: Callable[[str], bytes | None] = object_bytes
) -> list[Fields]:
    """OpenAI's `messages` in Ollama's form. Adds changes that were necessary to `remarks`. `object_bytes`: reads a
    call's arguments.

    Raises InvalidRequest or Unsupported with the path of the message.
    """
    talk = _Talk(object_bytes)
    rows = enumerate(all_of(dict, messages, "messages"))
    said = [_message(message, f"messages[{n}].", talk) for n, message in rows]
    if talk.has_broken_arguments:
        remarks.append(NO_OBJECT)
    return said


def _message(message: Fields, path: str, talk: _Talk) -> Fields:
    """One message; `talk` learns the names of its tool calls and gives them to the results that follow."""
    spoken = required(message, "role", str, path)
    role = _ROLES.get(spoken)
    if role is None:
        raise wrong(path + "role", " or ".join(repr(r) for r in _ROLES))
    content, at = message.get("content"), path + "content"
    if role == "assistant":
        content, at = assistant_content(message, path, "Ollama")
    elif content is None:
        raise InvalidRequest(f"'{at}' is missing", param=at)
    said: Fields = {"role": role} | _content("" if content is None else content, at)
    if role == "tool":
        said |= _result_of(message, path, talk)
    if role == "assistant":
        thought = message.get("reasoning_content") or message.get("reasoning")
        if isinstance(thought, str):
            said["thinking"] = thought
        if images := [_base64(url, at, at) for url, at in shown_images(message, path)]:
            said["images"] = [*said.get("images", ()), *images]
        if calls := optional(message, "tool_calls", list, path):
            rows = enumerate(all_of(dict, calls, path + "tool_calls"))
            said["tool_calls"] = [_tool_call(row, f"{path}tool_calls[{n}]", talk) for n, row in rows]
    return said


def _result_of(message: Fields, path: str, talk: _Talk) -> Fields:
    id_ = optional(message, "tool_call_id", str, path)
    name = optional(message, "name", str, path) or talk.called.get(id_ or "")
    if id_ is None and not name:
        raise InvalidRequest(f"'{path}tool_call_id' is missing", param=path + "tool_call_id")
    return {k: v for k, v in (("tool_name", name), ("tool_call_id", id_)) if v}


def _tool_call(call: Fields, path: str, talk: _Talk) -> Fields:
    function = required(call, "function", dict, path + ".")
    name = required(function, "name", str, path + ".function.")
    arguments = _arguments(function.get("arguments"), path + ".function.arguments", talk)
    said: Fields = {"function": {"name": name, "arguments": arguments}}
    if id_ := optional(call, "id", str, path + "."):
        talk.called[id_] = name
        said["id"] = id_
    return said


def _arguments(text: object, path: str, talk: _Talk) -> object:
    """OpenAI's JSON text -> the object that Ollama requires, its bytes unchanged. An empty text becomes ``{}``.

    So does a text that is no JSON object: a model wrote it once, the client sends it with every turn, and refusing it
    would end the conversation for good.
    """
    if text is None or text == "" or isinstance(text, dict):
        return text or {}
    raw = talk.object_bytes(typed(str, text, path))
    talk.has_broken_arguments |= raw is None
    return {} if raw is None else msgspec.Raw(raw)


def _content(content: object, path: str) -> Fields:
    """The text (of parts: one line each), and the images (base64 without prefix)."""
    if isinstance(content, str):
        return {"content": content}
    if not isinstance(content, list):
        raise wrong(path, "a string or an array of parts")
    texts: list[str] = []
    images: list[str] = []
    for n, part in enumerate(all_of(dict, content, path)):
        at = f"{path}[{n}]"
        kind = required(part, "type", str, at + ".")
        if kind in ("text", "refusal"):
            texts.append(required(part, kind, str, at + "."))
        elif kind == "image_url":
            images.append(_base64(*image_url(part, at + "."), at))
        else:
            raise Unsupported(f"Ollama takes text and images, and {at} is of type '{kind[:40]}'", param="messages")
    return {"content": joined_lines(texts)} | ({"images": images} if images else {})


def _base64(url: str, path: str, at: str) -> str:
    """The base64 of the data URI at `path`, in the part `at`. Only types that Ollama surely cannot read are refused."""
    media, data = data_uri(url, path, "Ollama")
    if media not in _IMAGE_TYPES:
        raise Unsupported(f"Ollama reads jpeg, png and webp, and {at} is '{media[:40]}'", param="messages")
    if not first_bytes(data):
        raise wrong(path, "a data URI with valid base64")
    return data
