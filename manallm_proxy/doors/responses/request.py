"""Validates a request of the Responses API, and translates it into a chat's body.

Fields that only this API has (``store``, ``include``, ``metadata``, ``truncation``, cache keys, ...) are never sent
to a provider: many refuse unknown fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import RequestSummary
from manallm_proxy.contract.records import define
from manallm_proxy.doors.responses.items import input_items
from manallm_proxy.doors.responses.plain_request import plain_request
from manallm_proxy.doors.responses.tool_names import Tool
from manallm_proxy.doors.responses.tools import Tools
from manallm_proxy.openai.json_object import decode_leniently
from manallm_proxy.openai.request import has_image_parts, read_summary
from manallm_proxy.openai.request_fields import Fields, optional, required, texts_of, wrong
from manallm_proxy.openai.stand_ins import LEAST, StandIns, read_texts

SEALED: Final = "reasoning.encrypted_content"
LOGPROBS: Final = "message.output_text.logprobs"
_PASSED: Final[dict[str, type]] = {
    "temperature": float,
    "top_p": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "seed": int,
    "service_tier": str,
    "user": str,
}
"""Fields that a chat has under the same name."""
_CHECKED: Final[dict[str, type]] = {
    "instructions": str,
    "max_tool_calls": int,
    "metadata": dict,
    "previous_response_id": str,
    "prompt_cache_key": str,
    "reasoning": dict,
    "safety_identifier": str,
    "store": bool,
    "text": dict,
    "truncation": str,
}
"""Fields that are only read here, or only repeated in the response."""
_SHAPED: Final = frozenset({"max_output_tokens", "reasoning", "text", "top_logprobs", "include"})
"""Fields that a chat has in another form."""
_REFUSED: Final = {
    "background": "answers are not made in the background: leave it out, and stream",
    "conversation": "conversations are not kept here: send the items, or previous_response_id",
    "prompt": "prompt templates are not kept here: send instructions and input",
}
CALLED_HERE: Final = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "tools": "tools",
}
"""A chat's fields -> their names in this API. A tool is named without its index, since the order may differ."""
_TEXTS: Final = ("input", "instructions")
"""Where long texts get stand-ins."""
_NONE: Final[frozenset[str]] = frozenset()
_SCHEMA_NAME: Final = "response"
"""The name of a schema without one: in a chat it is required."""


@define
class Asked:
    """A validated request. ``summary``: of ``body``, the client's own."""

    body: bytes = field(repr=False)
    summary: RequestSummary
    include: frozenset[str]
    stores: bool
    """Whether to store the response, which is the default."""
    previous: str | None
    """The id of the response that this one continues."""
    is_plain: bool = False
    """See `plain_request`."""
    _decoded: tuple[Fields, list[Fields], StandIns] | None = field(default=None, repr=False)
    chat: Fields = field(factory=dict, repr=False)
    """The chat's body, without messages, and ``tools``: set by `add_chat`."""
    tools: Tools = field(factory=Tools, repr=False)

    def decoded(self) -> tuple[Fields, list[Fields], StandIns]:
        """The fields but for ``input``, its items, and the stand-ins in both. A provider of this API may well need none
        of them. Two threads may ask at the same time, for a hedged request: what each gets belongs together."""
        decoded = self._decoded
        if decoded is None:
            fields, texts = read_texts(self.body, _TEXTS, self.summary.spans)
            self._decoded = decoded = (fields, input_items(fields.pop("input")), texts)
        return decoded

    def reader(self, history: Sequence[bytes]) -> Callable[[bytes], Any]:
        """Decodes an item of `history`; where all of it is large, with stand-ins as in the request itself."""
        if sum(map(len, history)) <= LEAST:
            return decode_leniently
        return self.decoded()[2].read

    @property
    def encode_whole(self) -> Callable[[Any], bytes]:
        """Writes what was decoded, in short calls."""
        return self.decoded()[2].encode_whole

    def forget(self) -> list[Any]:
        """Drops what was decoded, and the chat, which refers to it: what is asked for again is decoded again. Returns
        what was dropped, for the caller to free."""
        held = [self._decoded, self.chat, self.tools.rows]
        self._decoded, self.chat, self.tools.rows = None, {}, []
        return held

    def fields(self) -> Fields:
        """All but ``input``, decoded."""
        return self.decoded()[0]

    def repeated(self) -> Fields:
        """``fields``, for a response that repeats them: none where they cannot be decoded, for a number beyond all."""
        try:
            return self.fields()
        except InvalidRequest:
            return {}

    def items(self) -> list[Fields]:
        """``input``."""
        return self.decoded()[1]

    def tool(self, flat: str) -> Tool:
        """See `ToolNames.tool`."""
        return self.tools.names.tool(flat)


def read_request(body: bytes) -> Asked:
    """The validated request. Raises InvalidRequest, with ``param`` if one is at fault, if invalid or unsupported."""
    summary = read_summary(body, ("input", (str, list)), has_images=has_image_parts)
    if (plain := plain_request(body)) is not None:
        include, previous = frozenset(plain.include) if plain.include else _NONE, plain.previous_response_id or None
        return Asked(body, summary, include, plain.store is not False, previous, is_plain=True)
    fields, texts = read_texts(body, _TEXTS, summary.spans)
    for key, value in fields.items():
        if key in _CHECKED:
            if type(value) is not _CHECKED[key]:
                optional(fields, key, _CHECKED[key])
        elif key in _REFUSED and value not in (None, False):
            raise InvalidRequest(f"'{key}' is not served: {_REFUSED[key]}", param=key)
    include = frozenset(texts_of(optional(fields, "include", list) or [], "include")) if "include" in fields else _NONE
    items = input_items(fields.pop("input"))
    stores, previous = fields.get("store") is not False, fields.get("previous_response_id") or None
    return Asked(body, summary, include, stores, previous, decoded=(fields, items, texts))


def add_chat(asked: Asked, offering: Iterable[tuple[Fields, str]] = ()) -> None:
    """Translates all but the items, of which those that are `offering` tools are read for that alone, see `Tools.read`.

    Raises Untranslatable if a tool has no translation, and InvalidRequest.
    """
    fields, summary = asked.fields(), asked.summary
    asked.tools = tools = Tools()
    tools.read(fields, offering)
    chat: Fields = {"model": summary.model} if summary.model else {}
    chat |= {"messages": [], "stream": summary.stream}
    for key, kind in _PASSED.items():
        if key in fields and (value := optional(fields, key, kind)) is not None:
            chat[key] = value
    if not fields.keys().isdisjoint(_SHAPED):
        chat |= _length(fields) | _reasoning(fields) | _text(fields) | _logprobs(fields, asked.include)
    asked.chat = chat | _tools(fields, tools)


def _length(fields: Fields) -> Fields:
    """``max_output_tokens``. OpenAI's reasoning models accept only the newer name, many other servers only the older
    one; a request for reasoning effort identifies the former."""
    most = optional(fields, "max_output_tokens", int)
    if most is None:
        return {}
    if most < 1:
        raise wrong("max_output_tokens", "at least 1")
    thinks = isinstance(fields.get("reasoning"), dict) and fields["reasoning"].get("effort") is not None
    return {"max_completion_tokens" if thinks else "max_tokens": most}


def _reasoning(fields: Fields) -> Fields:
    """``reasoning``. Its ``summary`` has no effect: all reasoning that a provider shows is forwarded."""
    reasoning = optional(fields, "reasoning", dict) or {}
    effort = optional(reasoning, "effort", str, "reasoning.")
    return {} if effort is None else {"reasoning_effort": effort}


def _text(fields: Fields) -> Fields:
    text = optional(fields, "text", dict) or {}
    chat: Fields = {}
    if (verbosity := optional(text, "verbosity", str, "text.")) is not None:
        chat["verbosity"] = verbosity
    shape = optional(text, "format", dict, "text.")
    if shape is None:
        return chat
    path = "text.format."
    match required(shape, "type", str, path):
        case "text":
            return chat
        case "json_object":
            return chat | {"response_format": {"type": "json_object"}}
        case "json_schema":
            return chat | {"response_format": {"type": "json_schema", "json_schema": _schema(shape, path)}}
    raise wrong("text.format.type", "'text', 'json_object' or 'json_schema'")


def _schema(shape: Fields, path: str) -> Fields:
    """A JSON schema format, which is flat here and nested in a chat."""
    named: Fields = {
        "name": optional(shape, "name", str, path) or _SCHEMA_NAME,
        "schema": required(shape, "schema", dict, path),
    }
    if (description := optional(shape, "description", str, path)) is not None:
        named["description"] = description
    if (strict := optional(shape, "strict", bool, path)) is not None:
        named["strict"] = strict
    return named


def _logprobs(fields: Fields, include: frozenset[str]) -> Fields:
    top = optional(fields, "top_logprobs", int)
    if top is not None and not 0 <= top <= 20:
        raise wrong("top_logprobs", "a whole number from 0 to 20")
    if not top and LOGPROBS not in include:
        return {}
    return {"logprobs": True} | ({"top_logprobs": top} if top else {})


def _tools(fields: Fields, tools: Tools) -> Fields:
    """The chat's fields for tools; empty without any, since servers refuse ``tool_choice`` without ``tools``."""
    parallel = optional(fields, "parallel_tool_calls", bool)
    if not tools.rows:
        return {}
    chat: dict[str, Any] = {"tools": tools.rows}
    if tools.choice is not None:
        chat["tool_choice"] = tools.choice
    if parallel is not None:
        chat["parallel_tool_calls"] = parallel
    return chat
