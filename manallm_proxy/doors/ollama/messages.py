"""Translates Ollama's messages into OpenAI's.

In Ollama's, the content is one string with the images in a field of their own, the arguments of a tool call are an
object, and a tool result need not say which call it answers: it has the tool's name, or nothing at all.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

from attrs import field

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.records import define
from manallm_proxy.doors.ollama.results import Called, Result, answered_calls
from manallm_proxy.openai.assistant_message import image_rows, without_image_links
from manallm_proxy.openai.base64_text import first_bytes
from manallm_proxy.openai.caller_paths import Origins
from manallm_proxy.openai.joined import joined_text, tail_of
from manallm_proxy.openai.json_object import json_text
from manallm_proxy.openai.request_fields import Fields, all_of, optional, required, texts_of, wrong

_ROLES: Final = ("system", "user", "assistant", "tool")
_NAMES: Final = ("tool_call_id", "tool_name", "name")
"""By what a tool result names its call."""
_MEDIA: Final = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
    (b"BM", "image/bmp"),
)
"""Media types by the first bytes: a data URI needs the type, which Ollama's API leaves out."""


@define
class Conversation:
    """Translates messages in order.

    Generated ids are counted, not random: so a history keeps its ids from turn to turn, and with them its entry in the
    provider's prompt cache. They have nine letters and digits, as Mistral requires.
    """

    _given: set[str] = field(factory=set)
    """All ids in the client's messages, which generated ids must not repeat."""
    _used: set[str] = field(factory=set)
    _count: int = 0
    _turn: list[Called] = field(factory=list)
    """The calls of the latest turn that has any; its results come before the next such turn."""

    def read(self, messages: list[Any]) -> list[Fields]:
        """OpenAI's messages. Raises InvalidRequest, with ``param``, for what Ollama refuses, and for a tool result
        without a call."""
        rows = all_of(dict, messages, "messages")
        self._given = {id_ for row in rows for id_ in _given_ids(row)}
        results, read = _results(rows), []
        answered: dict[int, str] = {}
        for n, row in enumerate(rows):
            read.append(self._message(row, f"messages[{n}].", answered.get(n)))
            if n in results:
                answered = answered_calls(self._turn, results[n])
        return read

    @staticmethod
    def origins(messages: list[Fields]) -> Origins:
        """The origins of the translated messages, one per message of the client."""
        origins = Origins()
        for n, row in enumerate(messages):
            path = f"messages[{n}]"
            origins.add(path, places_of(row.get("content"), row.get("images"), path))
        return origins

    def _message(self, message: Fields, path: str, answered: str | None) -> Fields:
        """`answered`: the id of the call that the message is the result of, if it is one."""
        role = required(message, "role", str, path).lower()
        if role not in _ROLES:
            raise wrong(path + "role", " or ".join(repr(known) for known in _ROLES))
        text = optional(message, "content", str, path) or ""
        text, urls = without_image_links(text) if role == "assistant" else (text, [])
        said: Fields = {"role": role, "content": content_of(text, optional(message, "images", list, path), path)}
        if urls:
            said["images"] = image_rows(urls)
        if role == "assistant":
            if thinking := optional(message, "thinking", str, path):
                said["reasoning_content"] = thinking
            if calls := optional(message, "tool_calls", list, path):
                said["tool_calls"] = self._calls(calls, path + "tool_calls")
        if role == "tool":
            said["tool_call_id"] = answered or _answers_none(message, path)
        return said

    def _calls(self, calls: list[Any], path: str) -> list[Fields]:
        self._turn = []
        return [self._call(call, f"{path}[{n}].") for n, call in enumerate(all_of(dict, calls, path))]

    def _call(self, call: Fields, path: str) -> Fields:
        function = required(call, "function", dict, path)
        name = required(function, "name", str, path + "function.")
        arguments = optional(function, "arguments", dict, path + "function.") or {}
        given = optional(call, "id", str, path) or ""
        id_ = self._id(given)
        self._turn.append(Called(given, name, id_))
        try:
            text = json_text(arguments)
        except RecursionError:
            raise InvalidRequest("the body is nested too deeply") from None
        return {"id": id_, "type": "function", "function": {"name": name, "arguments": text}}

    def _id(self, given: str) -> str:
        """The client's own id at its first occurrence, else a new one."""
        if given and given not in self._used:
            self._used.add(given)
            return given
        while True:
            self._count += 1
            made = f"call{self._count:05}"
            if made not in self._given:
                return made


def _results(rows: list[Fields]) -> dict[int, dict[int, Result]]:
    """By index of each turn with calls: the results up to the next such turn, by their own indices."""
    results: dict[int, dict[int, Result]] = {}
    latest: dict[int, Result] = {}
    for n, row in enumerate(rows):
        if row.get("tool_calls"):
            latest = results[n] = {}
        elif str(row.get("role")).lower() == "tool":
            latest[n] = _named(row)
    return results


def _named(result: Fields) -> Result:
    """What a result names, where that is a string: anything else is refused once it is its turn."""
    id_, *names = (value if isinstance(value, str) else "" for value in map(result.get, _NAMES))
    return Result(id_, next(filter(None, names), ""))


def _answers_none(result: Fields, path: str) -> NoReturn:
    """Raises InvalidRequest."""
    id_, *names = [optional(result, key, str, path) or "" for key in _NAMES]
    named = id_ or next(filter(None, names), "")
    what = f": '{named[:64]}'" if named else ""
    raise InvalidRequest(f"'{path[:-1]}' answers no tool call before it{what}", param=path[:-1])


def _given_ids(message: Fields) -> list[str]:
    calls = message.get("tool_calls")
    rows = calls if isinstance(calls, list) else []
    ids = (row.get("id") for row in rows if isinstance(row, dict))
    return [id_ for id_ in ids if isinstance(id_, str) and id_]


def content_of(text: str, images: list[Any] | None, path: str) -> str | list[Fields]:
    """A message's content: a plain string if there are no images. `path`: of the message, with a trailing dot."""
    if not images:
        return text
    urls = [_data_uri(image, f"{path}images[{n}]") for n, image in enumerate(texts_of(images, path + "images"))]
    parts: list[Fields] = [{"type": "text", "text": text}] if text else []
    return parts + [{"type": "image_url", "image_url": {"url": url}} for url in urls]


def places_of(text: object, images: object, path: str, text_at: str = "content") -> tuple[str, ...]:
    """The paths of the parts that `content_of` makes. `path`: of the message; empty at the top level."""
    if not isinstance(images, list) or not images:
        return ()
    front = f"{path}." if path else ""
    texts = (front + text_at,) if text else ()
    return (*texts, *[f"{front}images[{n}]" for n in range(len(images))])


def _data_uri(image: str, path: str) -> str:
    """A data URI for base64 data; some clients send a data URI already. Raises InvalidRequest for anything else."""
    data = image
    if image.startswith("data:"):
        data = tail_of(image, place + 1) if (place := image.find(",")) >= 0 else ""
    first = first_bytes(data)
    if not first:
        raise wrong(path, "an image in base64")
    if image.startswith("data:"):
        return image
    media = next((media for start, media in _MEDIA if first.startswith(start)), "image/png")
    return joined_text([f"data:{media};base64,", data])
