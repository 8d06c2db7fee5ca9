"""Forced tool calls (``tool_choice: required`` or a function) for servers that cannot force one themselves.

The call is requested as structured output: the schema allows only one of the calls, and the model's text is forwarded
as a call, piece by piece as it arrives.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from attrs import evolve, field

from manallm_proxy.contract.answers import Delta, Texts, ToolCall, new_call_id
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.contract.records import define
from manallm_proxy.openai.call_arguments import ObjectEnd
from manallm_proxy.openai.json_object import DecodeErrors, decode, encode, encoder
from manallm_proxy.openai.request_fields import Fields, decoded, required
from manallm_proxy.openai.tool_choice import function_tools, tool_choice

HEAD_LIMIT: Final = 4096
"""The tool's name must appear within this many characters."""
_HEAD: Final = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]++|\\.)*+")\s*,\s*"arguments"\s*:\s*(?=\{)')
_NOT_FORCED: Final = frozenset({b'"auto"', b'"none"', b"null"})
_REPLACED: Final = frozenset({"tools", "tool_choice", "parallel_tool_calls", "response_format"})
_DEFINITIONS: Final = ("$defs", "definitions")


def is_forced(call: Call) -> bool:
    """Whether a chat request may demand a call, by a quick check of its ``tool_choice``."""
    span = call.summary.spans.get("tool_choice")
    if span is None:
        return False
    choice = call.body[slice(*span)]
    return choice not in _NOT_FORCED and not (b'"allowed_tools"' in choice and b'"required"' not in choice)


def schema_of_calls(tools: list[Fields]) -> Fields:
    """The JSON schema of a call of one of `tools` (see `function_tools`): its name, then its arguments."""
    definitions: Fields = {}
    calls: list[Fields] = []
    for n, tool in enumerate(tools):
        function = tool["function"]
        arguments = _hoisted(function.get("parameters") or {"type": "object"}, f"tool{n}_", definitions)
        properties = {"name": {"const": function["name"]}, "arguments": arguments}
        one = {"type": "object", "properties": properties, "required": list(properties)}
        calls.append({**one, "additionalProperties": False})
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**schema, "$defs": definitions} if definitions else schema


def as_structured_output(
    call: Call, model: str, asks_usage: bool, arranged: Callable[[list[Fields]], list[Any]] = lambda turns: turns
) -> bytes:
    """A forced call's request for an OpenAI-compatible server: tools are described in the prompt, and form the format.

    They are not sent as ``tools``, since llama-server refuses a format in combination with tools. `arranged`: makes the
    messages fit the server's chat template, which may refuse a last one of the system.
    """
    asked = decoded(call.body)
    allowed = tool_choice(asked).allowed(function_tools(asked))
    signatures = "\n".join(encode(tool["function"]).decode() for tool in allowed)
    words = f"Call one of these functions. Answer with a JSON object that has its name and its arguments.\n{signatures}"
    schema = {"name": "call", "schema": schema_of_calls(allowed), "strict": True}
    kept = {key: value for key, value in asked.items() if key not in _REPLACED}
    kept |= {"model": model, "response_format": {"type": "json_schema", "json_schema": schema}}
    kept["messages"] = arranged([*required(asked, "messages", list, ""), {"role": "system", "content": words}])
    if asks_usage and call.summary.stream:
        kept["stream_options"] = {"include_usage": True}
    return encoder(call.is_large)(kept)


def _hoisted(schema: Any, prefix: str, definitions: Fields) -> Any:
    """`schema` as a part of a larger one: its definitions move to the root, under names of their own."""
    names: set[str] = set()
    for key in _DEFINITIONS:
        names.update(schema.get(key) or {} if isinstance(schema.get(key), dict) else ())

    def moved(part: Any) -> Any:
        if isinstance(part, list):
            return [moved(each) for each in part]
        if not isinstance(part, dict):
            return part
        made = {key: moved(value) for key, value in part.items()}
        path = made.get("$ref")
        if isinstance(path, str):
            root, _, name = path.rpartition("/")
            if root in ("#/$defs", "#/definitions") and name in names:
                made["$ref"] = f"#/$defs/{prefix}{name}"
        return made

    for key in _DEFINITIONS:
        for name, part in (schema.get(key) or {}).items() if isinstance(schema.get(key), dict) else ():
            definitions[prefix + name] = moved(part)
    return moved({key: value for key, value in schema.items() if key not in _DEFINITIONS})


@define
class CallReader:
    """Turns the text of one choice into the parts of its one call, if the text follows the schema."""

    _held: str = ""
    """Text before the arguments."""
    _begun: bool = False
    _end: ObjectEnd = field(factory=ObjectEnd)
    """Finds the end of the arguments."""
    _ended: bool = False

    def read(self, delta: Delta) -> Delta:
        """`delta` with its text as a part of the call. Raises BadResponse if the text does not follow the schema."""
        if isinstance(delta, Texts):
            delta = delta.plain()
        if delta.tool_calls:  # the server has turned it into a call itself
            self._begun = self._ended = True
            return evolve(delta, content="")
        calls = self._parts(delta.content) if delta.content else ()
        finish = delta.finish
        if finish is not None and finish != "length":
            if not self._ended:
                raise _no_call()
            finish = "tool_calls"
        return evolve(delta, content="", tool_calls=calls, finish=finish, logprobs=None)

    def _parts(self, text: str) -> tuple[ToolCall, ...]:
        if self._begun:
            rest = self._arguments(text)
            return (ToolCall("", rest),) if rest else ()
        self._held += text
        head = _HEAD.match(self._held)
        if head is None:
            if len(self._held) > HEAD_LIMIT:
                raise _no_call()
            return ()
        try:
            name = decode(head[1], type=str)
        except DecodeErrors:
            raise _no_call() from None
        self._begun, rest, self._held = True, self._held[head.end() :], ""
        return (ToolCall(name, self._arguments(rest), new_call_id()),)

    def _arguments(self, text: str) -> str:
        """The part of `text` up to the end of the arguments' object."""
        if self._ended:
            return ""
        end = self._end.find(text)
        self._ended = end is not None
        return text[:end]


def _no_call() -> BadResponse:
    return BadResponse("it did not call the tool that it had to call", detail="no tool call")
