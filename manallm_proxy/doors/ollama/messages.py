"""Translates Ollama's messages into OpenAI's.

In Ollama's, the content is one string with the images in a field of their own, the arguments of a tool call are an
object, and a tool result need not say which call it answers: it has the tool's name, or nothing at all.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.records import define
from manallm_proxy.openai.assistant_message import image_rows, without_image_links
from manallm_proxy.openai.base64_text import first_bytes
from manallm_proxy.openai.caller_paths import Origins
from manallm_proxy.openai.joined import joined_text, tail_of
from manallm_proxy.openai.json_object import json_text
from manallm_proxy.openai.request_fields import Fields, all_of, optional, required, wrong

_ROLES: Final = ("system", "user", "assistant", "tool")
_MEDIA: Final = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
    (b"BM", "image/bmp"),
)
"""Media types by the first bytes: a data URI needs the type, which Ollama's API leaves out."""


@define
class _Pending:
    """A tool call without a result yet: the client's id (may be empty), the tool, the id that the provider gets."""

    given: str
    name: str
    id: str
    is_claimed: bool
    """A result names its id: results without an id are for the others, as long as there are some."""

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """What a result can find it by."""
        group = "claimed" if self.is_claimed else "free"
        return ("id", self.given), (group, self.name), (group, "")


@define
class _PendingCalls:
    """The calls of one turn that have no result yet, by all that a result can find them by: a turn may have thousands.

    An `OrderedDict`, since a plain one finds its first key slowly once many before it were removed.
    """

    _found_by: dict[tuple[str, str], OrderedDict[str, _Pending]] = field(factory=dict)
    _with_id: int = 0
    """How many of them have an id of the client's."""

    def clear(self) -> None:
        self._found_by.clear()
        self._with_id = 0

    def add(self, call: _Pending) -> None:
        self._with_id += bool(call.given)
        for key in call.keys:
            self._found_by.setdefault(key, OrderedDict())[call.id] = call

    def pop(self, id_: str, name: str) -> _Pending | None:
        """Removes and returns the call that a result answers; see `Conversation._answered_call`."""
        ways = [("id", id_)] if id_ else []
        if name:
            ways += [("free", name), ("claimed", name)]
        if not (id_ and self._with_id):
            ways += [("free", ""), ("claimed", "")]
        found = next((calls for way in ways if (calls := self._found_by.get(way))), None)
        if found is None:
            return None
        call = next(iter(found.values()))
        self._with_id -= bool(call.given)
        for key in dict.fromkeys(call.keys):
            del self._found_by[key][call.id]
        return call


@define
class Conversation:
    """Translates messages in order.

    Generated ids are counted, not random: so a history keeps its ids from turn to turn, and with them its entry in the
    provider's prompt cache. They have nine letters and digits, as Mistral requires.
    """

    _given: set[str] = field(factory=set)
    """All ids in the client's messages, which generated ids must not repeat."""
    _claimed: set[str] = field(factory=set)
    """Ids of the latest turn's calls that a result names: clients restart their ids with each turn."""
    _used: set[str] = field(factory=set)
    _count: int = 0
    _pending: _PendingCalls = field(factory=_PendingCalls)

    def read(self, messages: list[Any]) -> list[Fields]:
        """OpenAI's messages. Raises InvalidRequest, with ``param``, for what Ollama refuses, and for a tool result
        without a call."""
        rows = all_of(dict, messages, "messages")
        self._given = {id_ for row in rows for id_ in _given_ids(row)}
        claims, read = _claims(rows), []
        for n, row in enumerate(rows):
            self._claimed = claims.get(n, self._claimed)
            read.append(self._message(row, f"messages[{n}]."))
        return read

    @staticmethod
    def origins(messages: list[Fields]) -> Origins:
        """The origins of the translated messages, one per message of the client."""
        origins = Origins()
        for n, row in enumerate(messages):
            path = f"messages[{n}]"
            origins.add(path, places_of(row.get("content"), row.get("images"), path))
        return origins

    def _message(self, message: Fields, path: str) -> Fields:
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
            said["tool_call_id"] = self._answered_call(message, path)
        return said

    def _calls(self, calls: list[Any], path: str) -> list[Fields]:
        """A turn's calls. Results come before the next calls, so older calls are no longer pending."""
        self._pending.clear()
        return [self._call(call, f"{path}[{n}].") for n, call in enumerate(all_of(dict, calls, path))]

    def _call(self, call: Fields, path: str) -> Fields:
        function = required(call, "function", dict, path)
        name = required(function, "name", str, path + "function.")
        arguments = optional(function, "arguments", dict, path + "function.") or {}
        given = optional(call, "id", str, path) or ""
        pending = _Pending(given, name, self._id(given), given in self._claimed)
        self._pending.add(pending)
        try:
            text = json_text(arguments)
        except RecursionError:
            raise InvalidRequest("the body is nested too deeply") from None
        return {"id": pending.id, "type": "function", "function": {"name": name, "arguments": text}}

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

    def _answered_call(self, message: Fields, path: str) -> str:
        """The id of the call that a result answers: by id, else by the tool's name, else the next one in order.

        Ids take precedence over order: if the pending calls have ids and none matches, the result answers no call.
        """
        id_ = optional(message, "tool_call_id", str, path) or ""
        name = optional(message, "tool_name", str, path) or optional(message, "name", str, path) or ""
        found = self._pending.pop(id_, name)
        if found is None:
            what = f": '{(id_ or name)[:64]}'" if id_ or name else ""
            raise InvalidRequest(f"'{path[:-1]}' answers no tool call before it{what}", param=path[:-1])
        return found.id


def _claims(rows: list[Fields]) -> dict[int, set[str]]:
    """By index of each turn with calls: the ids that results name, up to the next such turn."""
    claims: dict[int, set[str]] = {}
    named: set[str] = set()
    for n in range(len(rows) - 1, -1, -1):
        if rows[n].get("tool_calls"):
            claims[n], named = named, set()
        elif isinstance(id_ := rows[n].get("tool_call_id"), str) and id_:
            named.add(id_)
    return claims


def _given_ids(message: Fields) -> list[str]:
    calls = message.get("tool_calls")
    rows = calls if isinstance(calls, list) else []
    ids = (row.get("id") for row in rows if isinstance(row, dict))
    return [id_ for id_ in ids if isinstance(id_, str) and id_]


def content_of(text: str, images: list[Any] | None, path: str) -> str | list[Fields]:
    """A message's content: a plain string if there are no images. `path`: of the message, with a trailing dot."""
    if not images:
        return text
    urls = [_data_uri(image, f"{path}images[{n}]") for n, image in enumerate(all_of(str, images, path + "images"))]
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
