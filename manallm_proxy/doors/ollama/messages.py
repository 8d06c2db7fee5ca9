"""A conversation in Ollama's words as OpenAI's messages.

There the content is one string with the images beside it, the arguments of a tool call are an object, and a tool's
result need not say which call it answers: it carries the tool's name, or nothing at all.
"""

from __future__ import annotations

import binascii
from typing import Any, Final

from attrs import define, field

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.openai.json_object import encode
from manallm_proxy.openai.request_fields import Fields, all_of, optional, required, wrong

_ROLES: Final = ("system", "user", "assistant", "tool")
_MEDIA: Final = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
    (b"BM", "image/bmp"),
)
"""By the first bytes: a data URI needs the type that Ollama's API leaves out."""


@define
class _Pending:
    """A tool call without its result: the id that the client gave, the tool, the id that the provider gets."""

    given: str
    name: str
    id: str


@define
class Conversation:
    """Translates messages in their order.

    The ids that we make are counted, not drawn: a history keeps its ids from turn to turn, and a provider its cache
    of the prompt. They have nine letters and digits, which Mistral insists on.
    """

    _given: set[str] = field(factory=set)
    """Ids that the client gives anywhere: none that we make may be one of them."""
    _used: set[str] = field(factory=set)
    _count: int = 0
    _pending: list[_Pending] = field(factory=list)

    def read(self, messages: list[Any]) -> list[Fields]:
        """Raises InvalidRequest, with ``param``, for what Ollama refuses too, and for a result without its call."""
        rows = all_of(dict, messages, "messages")
        self._given = {id_ for row in rows for id_ in _given_ids(row)}
        return [self._message(row, f"messages[{n}].") for n, row in enumerate(rows)]

    def _message(self, message: Fields, path: str) -> Fields:
        role = required(message, "role", str, path).lower()
        if role not in _ROLES:
            raise wrong(path + "role", " or ".join(repr(known) for known in _ROLES))
        text = optional(message, "content", str, path) or ""
        said: Fields = {"role": role, "content": content_of(text, optional(message, "images", list, path), path)}
        if role == "assistant":
            if thinking := optional(message, "thinking", str, path):
                said["reasoning_content"] = thinking
            if calls := optional(message, "tool_calls", list, path):
                said["tool_calls"] = self._calls(calls, path + "tool_calls")
        if role == "tool":
            said["tool_call_id"] = self._answered(message, path)
        return said

    def _calls(self, calls: list[Any], path: str) -> list[Fields]:
        """Results follow the calls that they answer, so older calls wait for none any more."""
        self._pending.clear()
        return [self._call(call, f"{path}[{n}].") for n, call in enumerate(all_of(dict, calls, path))]

    def _call(self, call: Fields, path: str) -> Fields:
        function = required(call, "function", dict, path)
        name = required(function, "name", str, path + "function.")
        arguments = optional(function, "arguments", dict, path + "function.") or {}
        given = optional(call, "id", str, path) or ""
        pending = _Pending(given, name, self._id(given))
        self._pending.append(pending)
        try:
            text = encode(arguments).decode()
        except RecursionError:
            raise InvalidRequest("the body is nested too deeply") from None
        return {"id": pending.id, "type": "function", "function": {"name": name, "arguments": text}}

    def _id(self, given: str) -> str:
        """The client's own, the first time that it is given."""
        if given and given not in self._used:
            self._used.add(given)
            return given
        while True:
            self._count += 1
            made = f"call{self._count:05}"
            if made not in self._given:
                return made

    def _answered(self, message: Fields, path: str) -> str:
        """The id of the call that a result answers: by id, else by the tool's name, else the next one in order.

        An id says more than the order: where the calls have ids, and none is this one, the call is missing.
        """
        id_ = optional(message, "tool_call_id", str, path) or ""
        name = optional(message, "tool_name", str, path) or optional(message, "name", str, path) or ""
        waiting = self._pending
        found = next((call for call in waiting if id_ and call.given == id_), None)
        found = found or next((call for call in waiting if name and call.name == name), None)
        if found is None and not (id_ and any(call.given for call in waiting)):
            found = next(iter(waiting), None)
        if found is None:
            what = f": '{(id_ or name)[:64]}'" if id_ or name else ""
            raise InvalidRequest(f"'{path[:-1]}' answers no tool call before it{what}", param=path[:-1])
        waiting.remove(found)
        return found.id


def _given_ids(message: Fields) -> list[str]:
    calls = message.get("tool_calls")
    rows = calls if isinstance(calls, list) else []
    ids = (row.get("id") for row in rows if isinstance(row, dict))
    return [id_ for id_ in ids if isinstance(id_, str) and id_]


def content_of(text: str, images: list[Any] | None, path: str) -> str | list[Fields]:
    """A message's content: a plain string where it has no images. `path` leads to ``images``, with its dot."""
    if not images:
        return text
    urls = [_data_uri(image, f"{path}images[{n}]") for n, image in enumerate(all_of(str, images, path + "images"))]
    parts: list[Fields] = [{"type": "text", "text": text}] if text else []
    return parts + [{"type": "image_url", "image_url": {"url": url}} for url in urls]


def _data_uri(image: str, path: str) -> str:
    """base64 with its type in front; some clients send a data URI all the same."""
    data = image.partition(",")[2] if image.startswith("data:") else image
    try:
        raw = binascii.a2b_base64(data, strict_mode=True)
    except ValueError:
        raw = b""
    if not raw:
        raise wrong(path, "an image in base64")
    if image.startswith("data:"):
        return image
    media = next((media for start, media in _MEDIA if raw.startswith(start)), "image/png")
    return f"data:{media};base64,{data}"
