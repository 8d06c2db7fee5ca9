"""OpenAI's chat messages as Gemini's contents (ai.google.dev/api/caching, ``Content`` and ``Part``).

There, instructions are separate from the conversation, whose turns alternate between ``user`` and ``model``; the
arguments and results of tools are objects, and a result names its function instead of its call.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Final

import msgspec
from attrs import field

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.contract.records import define
from manallm_proxy.openai.assistant_message import assistant_content, shown_images
from manallm_proxy.openai.base64_text import first_bytes, plain
from manallm_proxy.openai.joined import joined_lines
from manallm_proxy.openai.json_object import contains, object_bytes
from manallm_proxy.openai.request_fields import Fields, all_of, data_uri, image_url, optional, required, typed, wrong
from manallm_proxy.providers.mending.history import ANY_SIGNATURE

SIGNATURE_PATH: Final = ("extra_content", "google", "thought_signature")
"""Where a tool call carries Gemini's thought signature, in base64: the place that Google's own OpenAI endpoint uses, so
clients that return it there do so here."""

ENCODED_SIGNATURE: Final = base64.b64encode(ANY_SIGNATURE.encode()).decode()
"""The other form of what stands in for a signature, which LiteLLM sends."""
_REFERENCE: Final = b'"$ref"'
_ESCAPED: Final = rb"\u0024"
"""A dollar sign."""
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_AUDIO: Final = {"wav": "audio/wav", "mp3": "audio/mp3"}


@define
class Conversation:
    """The translated ``messages``. `signed`: the model refuses tool calls in its history without a signature.

    `is_foreign`: it has refused one, which another model may have written: none of the history is sent.
    ``object_bytes``: reads arguments, and the results of tools. ``stand_in``: for a signature.
    """

    signed: bool
    is_foreign: bool = False
    stand_in: str = ANY_SIGNATURE
    object_bytes: Callable[[str], bytes | None] = object_bytes
    name: Callable[[str], str] = str
    """The name that Gemini gets for that of a tool."""
    contents: list[Fields] = field(factory=list, repr=False)
    _instructions: list[str] = field(factory=list, repr=False)
    _called: dict[str, str] = field(factory=dict)
    """Id of a tool call -> its name. A repeated id means the later call."""
    _result_place: int = 0
    """The index in the last content's parts for the next result of a tool."""
    has_broken_arguments: bool = False

    @classmethod
    def read(
        cls,
        messages: list[Any],
        *,
        signed: bool,
        is_foreign: bool = False,
        stand_in: str = ANY_SIGNATURE,
        object_bytes: Callable[[str], bytes | None] = object_bytes,
        name: Callable[[str], str] = str,
    ) -> Conversation:
        """Translates `messages`. Raises InvalidRequest with a path if malformed, Unsupported if Gemini lacks it."""
        conversation = cls(signed, is_foreign, stand_in, object_bytes, name)
        for n, message in enumerate(all_of(dict, messages, "messages")):
            conversation._add(message, f"messages[{n}].")
        if not conversation.contents:
            raise InvalidRequest(
                "'messages' holds nothing for the model to answer: add a user message", param="messages"
            )
        return conversation

    @property
    def instruction(self) -> str | None:
        """All system and developer messages: Gemini has one place for them, before the conversation."""
        return "\n\n".join(filter(None, self._instructions)) or None

    def _add(self, message: Fields, path: str) -> None:
        role = required(message, "role", str, path)
        match role:
            case "system" | "developer":
                self._instructions.append(_text(message, path))
            case "user":
                self._say("user", _parts(_content(message, path), path + "content"))
            case "assistant":
                self._say("model", self._said(message, path))
            case "tool":
                self._answer(*self._result(message, path))
            case _:
                raise wrong(path + "role", " or ".join(repr(known) for known in _ROLES))

    def _say(self, role: str, parts: list[Fields]) -> None:
        """Adds `parts`, one content per turn: Gemini requires alternating roles, and all tool results in one turn.

        A turn without parts is left out: Gemini answers 400 to it, and to an empty text.
        """
        if not parts:
            return
        if self.contents and self.contents[-1]["role"] == role:
            self.contents[-1]["parts"] += parts
        else:
            self.contents.append({"role": role, "parts": parts})
        self._result_place = len(self.contents[-1]["parts"])

    def _answer(self, result: Fields, others: list[Fields]) -> None:
        """Adds a tool's `result` next to those before it; `others`, which it cannot hold, come after all of them."""
        if not self.contents or self.contents[-1]["role"] != "user":
            self.contents.append({"role": "user", "parts": []})
            self._result_place = 0
        parts = self.contents[-1]["parts"]
        parts.insert(self._result_place, result)
        parts += others
        self._result_place += 1

    def _said(self, message: Fields, path: str) -> list[Fields]:
        content, at = assistant_content(message, path, "Gemini")
        parts = [] if content in (None, "") else _parts(content, at)
        for url, at in shown_images(message, path):
            parts.append(_inline(url, at) | ({"thoughtSignature": self.stand_in} if self.signed else {}))
        calls = all_of(dict, optional(message, "tool_calls", list, path) or [], path + "tool_calls")
        for n, call in enumerate(calls):
            parts.append(self._call(call, f"{path}tool_calls[{n}]", is_first=n == 0))
        return parts

    def _call(self, call: Fields, path: str, *, is_first: bool) -> Fields:
        """A tool call's part. Of parallel calls Gemini signs only the first, and expects a signature only there."""
        if call.get("type", "function") != "function":
            raise Unsupported(f"Gemini knows tool calls of type 'function' only, {path} is another", param="messages")
        function = required(call, "function", dict, path + ".")
        name = self.name(required(function, "name", str, path + ".function."))
        arguments = self._arguments(function.get("arguments"), path + ".function.arguments")
        said: Fields = {"name": name, "args": arguments}
        if (id_ := optional(call, "id", str, path + ".")) is not None:
            self._called[id_] = name
            said["id"] = id_
        signature = _signature(call, path) if not self.is_foreign else None
        if signature is None and is_first and self.signed:
            signature = self.stand_in
        part: Fields = {"functionCall": said}
        return part if signature is None else {**part, "thoughtSignature": signature}

    def _arguments(self, text: object, path: str) -> object:
        """OpenAI's JSON text as an object. An empty text means ``{}``.

        So does a text that is no JSON object: a model wrote it once, the client sends it with every turn, and refusing
        it would end the conversation for good.
        """
        if text is None or text == "" or isinstance(text, dict):
            return text or {}
        raw = self._object(typed(str, text, path))
        self.has_broken_arguments |= raw is None
        return {} if raw is None else raw

    def _result(self, message: Fields, path: str) -> tuple[Fields, list[Fields]]:
        """The result's part, and the parts of its images and files."""
        id_ = required(message, "tool_call_id", str, path)
        name = self._called.get(id_) or optional(message, "name", str, path)
        if name is None:
            raise InvalidRequest(f"'{path}tool_call_id' names no tool call before it", param=path + "tool_call_id")
        text, others = _text_and_rest(message, path)
        return {"functionResponse": {"id": id_, "name": self.name(name), "response": self._output(text)}}, others

    def _output(self, text: str) -> object:
        """A tool's result as the object that Gemini requires: a JSON object unchanged, anything else under
        ``output``; so is a JSON schema, since Gemini takes ``$ref`` in an object for the name of a picture."""
        raw = self.object_bytes(text)
        is_text = raw is None or contains(raw, _REFERENCE) or contains(raw, _ESCAPED)
        return {"output": text} if is_text or raw is None else msgspec.Raw(raw)

    def _object(self, text: str) -> msgspec.Raw | None:
        """A JSON object, its bytes unchanged except for lone surrogates; None for any other text."""
        raw = self.object_bytes(text)
        return None if raw is None else msgspec.Raw(raw)


def _signature(call: Fields, path: str) -> str | None:
    """The signature that a client returned (`SIGNATURE_PATH`); None if there is none, as from other providers."""
    holder: Any = call
    for key in SIGNATURE_PATH:
        holder = holder.get(key) if isinstance(holder, dict) else None
    if holder is None:
        return None
    path = ".".join((path, *SIGNATURE_PATH))
    return _checked_base64(typed(str, holder, path), path)


def _content(message: Fields, path: str) -> Any:
    content = message.get("content")
    if content is None:
        raise InvalidRequest(f"'{path}content' is missing", param=path + "content")
    return content


def _text(message: Fields, path: str) -> str:
    """The content of a message that can only hold text; its parts on a line each."""
    content = _content(message, path)
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(path + "content", "a string or an array of parts")
    path += "content"
    parts = enumerate(all_of(dict, content, path))
    return joined_lines(required(part, "text", str, f"{path}[{n}].") for n, part in parts)


def _text_and_rest(message: Fields, path: str) -> tuple[str, list[Fields]]:
    """A tool's result: its text, and what else it has."""
    content = _content(message, path)
    if not isinstance(content, list) or all(isinstance(part, dict) and "text" in part for part in content):
        return _text(message, path), []
    parts = _parts(content, path + "content")
    return joined_lines(part["text"] for part in parts if "text" in part), [p for p in parts if "text" not in p]


def _parts(content: object, path: str) -> list[Fields]:
    if isinstance(content, str):
        return [{"text": content}] if content else []
    if not isinstance(content, list):
        raise wrong(path, "a string or an array of parts")
    parts = [_part(part, f"{path}[{n}].") for n, part in enumerate(all_of(dict, content, path))]
    return [part for part in parts if part.get("text") != ""]


def _part(part: Fields, path: str) -> Fields:
    kind = required(part, "type", str, path)
    match kind:
        case "text" | "refusal":
            return {"text": required(part, kind, str, path)}
        case "image_url":
            return _inline(*image_url(part, path))
        case "input_audio":
            return _audio(required(part, kind, dict, path), path + "input_audio.")
        case "file":
            return _file(required(part, kind, dict, path), path + "file.")
    known = "'text', 'image_url', 'input_audio' or 'file'"
    raise wrong(path + "type", known)


def _audio(audio: Fields, path: str) -> Fields:
    spoken = required(audio, "format", str, path)
    if spoken not in _AUDIO:
        raise wrong(path + "format", " or ".join(repr(known) for known in _AUDIO))
    data = _checked_base64(required(audio, "data", str, path), path + "data")
    return {"inlineData": {"mimeType": _AUDIO[spoken], "data": data}}


def _file(file: Fields, path: str) -> Fields:
    if file.get("file_id") is not None:
        raise Unsupported("uploaded files are not served here: send 'file_data' as a base64 data URI", param="messages")
    return _inline(required(file, "file_data", str, path), path + "file_data")


def _inline(url: str, path: str) -> Fields:
    """A base64 data URI. No URL is fetched for clients, neither by us nor by Gemini."""
    media, data = data_uri(url, path, "Gemini")
    if not media:
        raise wrong(path, "a base64 data URI with its type")
    return {"inlineData": {"mimeType": media, "data": _checked_base64(data, path)}}


def _checked_base64(text: str, path: str) -> str:
    """`text`, in either alphabet and padded or not, converted to the standard alphabet with padding."""
    padded = plain(text) if "\n" not in text else ""  # in lines it never is, and is not copied
    if not first_bytes(padded):
        raise wrong(path, "valid base64")
    return padded
