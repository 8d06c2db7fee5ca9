"""Translates Anthropic's messages into OpenAI's.

In Anthropic's, a turn is one list of blocks. In OpenAI's, each tool result is a message of its own, before the rest
of its turn, and tool calls are in a field separate from the content.
"""

from __future__ import annotations

import re
from typing import Any, Final

from attrs import evolve, field

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.records import define
from manallm_proxy.doors.carried import EXTRA, Carried, Unpacker, unpack
from manallm_proxy.doors.messages.content import (
    READABLE,
    blocks_of,
    content_of,
    cut,
    only_text,
    parts_of,
    text_of,
    text_part,
    unknown_block,
)
from manallm_proxy.openai.assistant_message import image_rows, without_image_links
from manallm_proxy.openai.caller_paths import Origins
from manallm_proxy.openai.joined import joined_lines
from manallm_proxy.openai.json_object import json_text
from manallm_proxy.openai.reasoning_details import DETAILS
from manallm_proxy.openai.request_fields import Fields, all_of, optional, required, wrong
from manallm_proxy.openai.short_names import sent_name

_IN_USER: Final = (*READABLE, "tool_result")
_IN_ASSISTANT: Final = ("text", "thinking", "redacted_thinking", "tool_use")
_IN_RESULT: Final = (*READABLE, "tool_reference")
_SEARCHES: Final = frozenset({"web_search_tool_result", "tool_search_tool_result"})
"""Types of results of searches that Anthropic's servers ran: what they gave is in the text behind them, and in the
request's tools. If they were refused, a conversation could not go on with any other target."""
_SEARCHED: Final = ("web_search", "tool_search_tool_")
"""Beginnings of the names of those tools."""
_OF_CLIENT: Final = re.compile(r'(?:x-anthropic-[a-z-]{1,64}:[^\n"]{0,1000}(?:\n|\Z)){0,8}')
"""Lines of Claude Code's at the beginning of its instructions, which are for Anthropic alone. They are others each
time: a local server would read the whole prompt again."""
_NEXT_MESSAGE: Final = "(The result is in the next message.)"


@define
class History:
    """OpenAI's messages, as translated so far."""

    messages: list[Fields] = field(factory=list, repr=False)
    origins: Origins = field(factory=Origins, repr=False)
    _called: set[str] = field(factory=set, repr=False)
    """Ids of all tool calls so far."""
    _carried: dict[int, list[Carried]] = field(factory=dict, repr=False)
    """By message: data for one provider each."""
    _unpacker: Unpacker = field(factory=Unpacker, repr=False)
    left_out: dict[str, None] = field(factory=dict)
    """Types of blocks that were left out, safe to log."""

    @classmethod
    def read(cls, asked: Fields) -> History:
        """Translates ``system`` and ``messages`` of a request. Raises InvalidRequest with the path in ``param``."""
        history = cls()
        if (system := asked.get("system")) is not None:
            history._say_system(_without_lines_of_client(text_of(system, "system")), "system")
        turns = required(asked, "messages", list, "")
        for n, message in enumerate(all_of(dict, turns, "messages")):
            history._turn(message, f"messages[{n}]")
        if all(message["role"] == "system" for message in history.messages):
            raise InvalidRequest("'messages' holds nothing to answer: add a user message", param="messages")
        return history

    def carries(self, provider: str | None = None) -> bool:
        """Whether some data is for `provider` alone; None: for any one."""
        rows = [each for carried in self._carried.values() for each in carried]
        return any(each.provider if provider is None else each.provider == provider for each in rows)

    def messages_for(self, provider: str) -> list[Fields]:
        """The messages as `provider` gets them: with its own thoughts, and the data that it wants back."""
        rows = [*self.messages]
        for n, carried in self._carried.items():
            rows[n] = _completed(rows[n], [each for each in carried if each.provider == provider])
        return rows

    def _turn(self, message: Fields, path: str) -> None:
        role = required(message, "role", str, path + ".")
        content = message.get("content")
        path += ".content"
        if content is None:
            raise InvalidRequest(f"'{path}' is missing", param=path)
        match role:
            case "user":
                self._user(content, path)
            case "assistant":
                self._assistant(content, path)
            case "system":
                self._say_system(text_of(content, path), path.removesuffix(".content"))
            case _:
                raise wrong(path.removesuffix("content") + "role", "'user', 'assistant' or 'system'")

    def _say_system(self, text: str, path: str) -> None:
        if text:
            self._add({"role": "system", "content": text}, path)

    def _user(self, content: object, path: str) -> None:
        if (text := only_text(content, path)) is not None:
            self._add({"role": "user", "content": text}, path.removesuffix(".content"))
            return
        parts: list[tuple[Fields, str]] = []
        shown: list[tuple[Fields, str]] = []
        for block, kind, at in blocks_of(content, path):
            if kind == "tool_result":
                shown += [(part, at) for part in self._result(block, at)]
            else:
                parts += [(part, at) for part in parts_of(block, kind, at, _IN_USER)]
        if said := shown + parts:
            content = content_of([part for part, _ in said])
            places = tuple([at for _, at in said]) if isinstance(content, list) else ()
            self._add({"role": "user", "content": content}, path.removesuffix(".content"), places)

    def _result(self, block: Fields, path: str) -> list[Fields]:
        """Adds the result's message. Returns the parts that a tool message cannot hold, for the user message."""
        id_ = required(block, "tool_use_id", str, path + ".")
        if id_ not in self._called:
            raise InvalidRequest(
                f"'{path}.tool_use_id' is '{cut(id_)}', and no tool_use before it has that id", param=path
            )
        content = block.get("content")
        blocks = () if content is None else blocks_of(content, path + ".content")
        parts = [part for each, kind, at in blocks for part in _parts_of_result(each, kind, at)]
        text = joined_lines(part["text"] for part in parts if part["type"] == "text")
        others = [part for part in parts if part["type"] != "text"]
        if optional(block, "is_error", bool, path + ".") and not text.lower().startswith("error"):
            text = f"Error: {text}" if text else "Error"
        said: Fields = {"role": "tool", "tool_call_id": id_, "content": text or (_NEXT_MESSAGE if others else "")}
        self._add(said, path)
        return [text_part(f"From the result of tool call {id_}:"), *others] if others else []

    def _assistant(self, content: object, path: str) -> None:
        texts: list[str] = []
        calls: list[Fields] = []
        places: list[str] = []
        carried: list[Carried] = []
        for block, kind, at in blocks_of(content, path):
            match kind:
                case "text":
                    texts.append(required(block, "text", str, at + "."))
                case "tool_use":
                    calls.append(self._call(block, at + "."))
                    places.append(at)
                case "thinking":
                    carried.append(_thought(block, at + ".", self._unpacker))
                case "redacted_thinking":
                    pass  # only the API that wrote it can read it
                case _ if kind in _SEARCHES or (kind == "server_tool_use" and _is_search(block)):
                    self.left_out[kind] = None
                case _:
                    raise unknown_block(kind, at, _IN_ASSISTANT)
        text, urls = without_image_links(joined_lines(texts))
        if carried and (calls or texts):
            self._carried[len(self.messages)] = carried
        shown: Fields = {"images": image_rows(urls)} if urls else {}
        if calls:
            said = {"role": "assistant", "content": text or None, "tool_calls": calls, **shown}
            self._add(said, path.removesuffix(".content"), calls=tuple(places))
        elif texts:
            self._add({"role": "assistant", "content": text, **shown}, path.removesuffix(".content"))

    def _add(self, message: Fields, path: str, parts: tuple[str, ...] = (), calls: tuple[str, ...] = ()) -> None:
        self.messages.append(message)
        self.origins.add(path, parts, calls)

    def _call(self, block: Fields, path: str) -> Fields:
        id_ = required(block, "id", str, path)
        self._called.add(id_)
        arguments: Any = optional(block, "input", dict, path) or {}
        name = sent_name(required(block, "name", str, path))
        function = {"name": name, "arguments": json_text(arguments)}
        return {"id": id_, "type": "function", "function": function}


def _without_lines_of_client(text: str) -> str:
    lines = _OF_CLIENT.match(text)
    return text[lines.end() :] if lines is not None else text


def _parts_of_result(block: Fields, kind: str, path: str) -> list[Fields]:
    """The parts that a block in a tool's result becomes. A reference is to a tool of the request, which is sent as
    all others: its name tells the model that it is there."""
    if kind == "tool_reference":
        return [text_part(f"Callable now: {sent_name(required(block, 'tool_name', str, path + '.'))}")]
    return parts_of(block, kind, path, _IN_RESULT)


def _is_search(block: Fields) -> bool:
    name = block.get("name")
    return isinstance(name, str) and name.startswith(_SEARCHED)


def _thought(block: Fields, path: str, unpacker: Unpacker) -> Carried:
    """What a thinking block carries, with its text if that goes back."""
    carried = unpack(block.get("signature"), unpacker)
    if not carried.provider or carried.reasoning or carried.details:
        return carried
    return evolve(carried, reasoning=optional(block, "thinking", str, path) or "")


def _completed(message: Fields, carried: list[Carried]) -> Fields:
    """`message` with the data that belongs to it."""
    details = [detail for each in carried for detail in each.details]
    message = {**message, DETAILS: details} if details else message
    for each in carried:
        if each.reasoning and not each.details:
            message = {**message, each.key: joined_lines(filter(None, (message.get(each.key), each.reasoning)))}
    extras = {id_: extra for each in carried for id_, extra in each.extras.items()}
    if not extras or "tool_calls" not in message:
        return message
    calls = [{**call, EXTRA: extras[call["id"]]} if call["id"] in extras else call for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}
