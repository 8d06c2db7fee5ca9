"""Translates input items into a chat's messages.

A chat has turns: an assistant's text and calls, then the results of those calls, then the next message. Items are
looser: texts and calls of one turn are separate items, and a result may come after the next text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from attrs import evolve, field

from manallm_proxy.contract.errors import InvalidRequest, Untranslatable
from manallm_proxy.contract.records import define
from manallm_proxy.doors.carried import EXTRA, KEPT, SHOWN, Carried, Unpacker, of_item
from manallm_proxy.doors.responses.content import read_content, text_and_rest
from manallm_proxy.doors.responses.tool_names import SEARCH, ToolNames, input_to_arguments
from manallm_proxy.openai.caller_paths import Origins
from manallm_proxy.openai.joined import joined_lines
from manallm_proxy.openai.json_object import json_text
from manallm_proxy.openai.reasoning_details import DETAILS
from manallm_proxy.openai.request_fields import Fields, all_of, optional, required, wrong

INPUT: Final = "input"
REFERENCE: Final = "item_reference"
_SCHEME_LIMIT: Final = 16
"""A URL's colon is within this many characters."""
_ROLES: Final = {"user": "user", "system": "system", "developer": "system", "assistant": "assistant"}
_KNOWN: Final = (
    "message, function_call, function_call_output, custom_tool_call, custom_tool_call_output, tool_search_call, "
    "tool_search_output, additional_tools, reasoning, image_generation_call and item_reference"
)
_SEARCHES: Final = frozenset({"web_search_call", "file_search_call"})
"""Types of items that only say that a provider has searched: they are left out, as the tools are. A client that stores
nothing sends them with each turn, and could not go on with any other target."""


@define
class _Turn:
    """An assistant's texts, reasoning, calls and images, and the results of the calls."""

    texts: list[str] = field(factory=list, repr=False)
    reasoning: list[Carried] = field(factory=list, repr=False)
    calls: list[Fields] = field(factory=list, repr=False)
    images: list[Fields] = field(factory=list, repr=False)
    results: list[Fields] = field(factory=list, repr=False)
    extras: dict[str, Carried] = field(factory=dict, repr=False)
    """The same object as `Conversation._extras`."""
    shown: list[Fields] = field(factory=list, repr=False)
    """Images and files among the results, which a chat's tool message cannot hold."""
    said_at: str = ""
    """The path of the item that became the assistant's message; if several did, the path of all items."""
    calls_at: list[str] | None = None
    """None rather than an empty list, see `Origins`; likewise the next two."""
    results_at: list[str] | None = None
    shown_at: list[str] | None = None

    def add_origins(self, origins: Origins) -> None:
        """Adds the origins of its messages."""
        if self._speaks:
            origins.add(self.said_at, calls=tuple(self.calls_at or ()))
        for path in self.results_at or ():
            origins.add(path)
        if self.shown:
            origins.add(INPUT, tuple(self.shown_at or ()))

    @property
    def _speaks(self) -> bool:
        """Whether it has a message: one with only reasoning is not possible in a chat."""
        return bool(self.texts or self.calls or self.images)

    def messages(self, provider: str) -> Iterable[Fields]:
        """The messages as `provider` gets them."""
        said: Fields = {"role": "assistant", "content": joined_lines(self.texts) if self.texts else None}
        for thought in self.reasoning:
            if thought.provider != provider:
                continue
            if thought.details:
                said[DETAILS] = [*said.get(DETAILS, ()), *thought.details]
            else:
                said[thought.key] = joined_lines(filter(None, (said.get(thought.key), thought.reasoning)))
        if self.images:
            said["images"] = self.images
        if self.calls:
            said["tool_calls"] = [self._call(call, provider) for call in self.calls]
        elif said["content"] is None:
            said["content"] = ""
        if self._speaks:
            yield said
        yield from self.results
        if self.shown:
            yield {"role": "user", "content": self.shown}

    def _call(self, call: Fields, provider: str) -> Fields:
        carried = self.extras.get(call["id"])
        extra = carried.extras[call["id"]] if carried is not None and carried.provider == provider else None
        return call if extra is None else {**call, EXTRA: extra}


@define
class Conversation:
    """Translates items, added one by one, into a chat's messages."""

    _names: ToolNames
    _rows: list[Fields | _Turn] = field(factory=list, repr=False)
    _said_at: dict[int, str] = field(factory=dict)
    """By index in ``_rows``: the path of a message that is not an assistant's."""
    _outputs: set[int] = field(factory=set)
    """Which of them are results without a call."""
    _open: _Turn | None = None
    """The current turn, while an assistant's items follow each other."""
    _called: dict[str, _Turn] = field(factory=dict)
    """The turn of each call, by the call's id. A repeated id means the later call."""
    _extras: dict[str, Carried] = field(factory=dict, repr=False)
    """By call id: data that must go back with the call."""
    _unpacker: Unpacker = field(factory=Unpacker, repr=False)
    carries: bool = False
    """Whether any data is meant for one provider only."""
    left_out: list[str] = field(factory=list)
    """Types of items left out since only the provider that made them can read them (searches, ...)."""

    def say(self, role: str, content: Any, path: str) -> None:
        """Adds a message that is not an assistant's. `path`: its path in the request."""
        self._open = None
        self._said_at[len(self._rows)] = path
        self._rows.append({"role": role, "content": content})

    def add(self, item: Fields, path: str) -> None:
        """Adds `item`. Raises InvalidRequest with the path, and the type if it is unknown."""
        kind = optional(item, "type", str, path + ".") or ("message" if "role" in item else None)
        match kind:
            case "message":
                self._message(item, path)
            case "function_call":
                self._call(item, path, required(item, "arguments", str, path + ".") or "{}")
            case "custom_tool_call":
                self._call(item, path, input_to_arguments(required(item, "input", str, path + ".")))
            case "function_call_output":
                self._output(item, path)
            case "custom_tool_call_output":
                self._result(item, path)
            case "tool_search_call" | "tool_search_output" if item.get("execution") != "client":
                self.left_out.append(kind)  # OpenAI's own search: what it searched is sent as a whole
            case "tool_search_call":
                name = {"name": SEARCH, **item}
                self._call(name, path, json_text(optional(item, "arguments", dict, path + ".") or {}))
            case "tool_search_output":
                self._result({**item, "output": self._found(item, path)}, path)
            case "agent_message":
                self._message({**item, "role": "user"}, path)
            case "additional_tools":
                pass  # `Tools` reads them
            case "reasoning":
                self._reasoning(item, path)
            case "image_generation_call":
                self._image(item, path)
            case None:
                raise InvalidRequest(f"{path} has neither 'type' nor 'role'", param=path)
            case _ if KEPT in item or kind in _SEARCHES:
                self.left_out.append(kind)
            case _:
                raise Untranslatable(f"{path} is of type '{kind[:64]}', and this door reads {_KNOWN}", param=path)

    def messages(self, provider: str = "") -> list[Fields]:
        """All messages for `provider`."""
        written: list[Fields] = []
        for row in self._rows:
            if isinstance(row, _Turn):
                written += row.messages(provider)
            else:
                written.append(row)
        return written

    def origins(self) -> Origins:
        """The origins of all messages, whose number does not depend on the provider."""
        origins = Origins()
        for n, row in enumerate(self._rows):
            if isinstance(row, _Turn):
                row.add_origins(origins)
                continue
            path, content = self._said_at[n], row["content"]
            if isinstance(content, list) and path.startswith(INPUT):
                at = path if n in self._outputs else f"{path}.content[%d]"
                origins.add(path, tuple([at.replace("%d", str(part)) for part in range(len(content))]))
            else:
                origins.add(path)
        return origins

    def _message(self, item: Fields, path: str) -> None:
        role = _ROLES.get(required(item, "role", str, path + "."))
        if role is None:
            raise wrong(path + ".role", "'user', 'assistant', 'system' or 'developer'")
        if item.get("content") is None:
            raise InvalidRequest(f"'{path}.content' is missing", param=path + ".content")
        content = read_content(item["content"], path + ".content")
        if role == "user":
            self.say(role, content, path)
            return
        text, rest = text_and_rest(content)
        if rest:
            raise wrong(path + ".content", f"text: the role is '{item['role']}'")
        if role == "assistant":
            self._turn(path).texts.append(text)
        else:
            self.say(role, text, path)

    def _turn(self, path: str) -> _Turn:
        """The turn of an assistant's next item, at `path`; a new one after results."""
        if self._open is None or self._open.results:
            self._open = _Turn(extras=self._extras)
            self._rows.append(self._open)
        self._open.said_at = path if self._open.said_at in ("", path) else INPUT
        return self._open

    def _call(self, item: Fields, path: str, arguments: str) -> None:
        id_ = required(item, "call_id", str, path + ".")
        name = required(item, "name", str, path + ".")
        flat = self._names.flat(name, optional(item, "namespace", str, path + "."))
        call: Fields = {"id": id_, "type": "function", "function": {"name": flat, "arguments": arguments}}
        self._carry(item)
        turn = self._turn(path)
        turn.calls.append(call)
        turn.calls_at = _noted(turn.calls_at, path)
        self._called[id_] = turn

    def _output(self, item: Fields, path: str) -> None:
        """Adds a result. One without a call's id is what the client ran by itself: a chat knows only a user's text."""
        if optional(item, "call_id", str, path + ".") is not None or not item.get("name"):
            self._result(item, path)
            return
        name = self._names.flat(required(item, "name", str, path + "."), optional(item, "namespace", str, path + "."))
        text, rest = _read_output(item, path)
        said = f"Output of {name}, which ran without being called:\n{text}"
        self._outputs.add(len(self._rows))
        self.say("user", [{"type": "text", "text": said}, *rest] if rest else said, path)

    def _result(self, item: Fields, path: str) -> None:
        id_ = required(item, "call_id", str, path + ".")
        turn = self._called.get(id_)
        if turn is None:
            raise InvalidRequest(
                f"No tool call found for call_id '{id_[:64]}' ({path}): the call has to come before its output",
                param=path + ".call_id",
            )
        text, rest = _read_output(item, path)
        turn.results.append({"role": "tool", "tool_call_id": id_, "content": text or _note(rest)})
        turn.results_at = _noted(turn.results_at, path)
        if rest:
            turn.shown += [{"type": "text", "text": f"Output of the tool call {id_}:"}, *rest]
            turn.shown_at = _noted(turn.shown_at, *[path] * (1 + len(rest)))

    def _found(self, item: Fields, path: str) -> str:
        """What the client's search for tools has found: their names. `Tools` reads the rest."""
        tools = all_of(dict, optional(item, "tools", list, path + ".") or [], path + ".tools")
        names = [self._names.flat(*each) for tool in tools for each in _names_in(tool)]
        return "\n".join(["Found, and callable from now on:", *names]) if names else "No tools were found."

    def _reasoning(self, item: Fields, path: str) -> None:
        """Adds reasoning, if we packed it: a summary is for people, and most providers refuse it."""
        carried = self._carry(item)
        if carried.reasoning == SHOWN:
            carried = evolve(carried, reasoning=_shown(item))
        if carried.reasoning or carried.details:
            self._turn(path).reasoning.append(carried)

    def _carry(self, item: Fields) -> Carried:
        carried = of_item(item, self._unpacker)
        self._extras |= dict.fromkeys(carried.extras, carried)
        self.carries = self.carries or bool(carried.provider)
        return carried

    def _image(self, item: Fields, path: str) -> None:
        """Adds an image that a model generated, in OpenRouter's form. Its result is base64, or a provider's URL."""
        result = required(item, "result", str, path + ".")
        form = optional(item, "output_format", str, path + ".") or "png"
        url = result if ":" in result[:_SCHEME_LIMIT] else f"data:image/{form};base64,{result}"
        self._turn(path).images.append({"type": "image_url", "image_url": {"url": url}})


def _read_output(item: Fields, path: str) -> tuple[str, list[Fields]]:
    """The text of a result, and its images and files."""
    if item.get("output") is None:
        raise InvalidRequest(f"'{path}.output' is missing", param=path + ".output")
    return text_and_rest(read_content(item["output"], path + ".output"))


def _names_in(tool: Fields) -> list[tuple[str, str | None]]:
    """The name and the namespace of a tool that was found, or of each inside of it."""
    name = tool.get("name")
    if not isinstance(name, str):
        return []
    if tool.get("type") != "namespace":
        return [(name, None)]
    rows = tool.get("tools")
    inner = [row.get("name") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [(each, name) for each in inner if isinstance(each, str)]


def _noted(known: list[str] | None, *paths: str) -> list[str]:
    known = [] if known is None else known
    known += paths
    return known


def _shown(item: Fields) -> str:
    """The text of reasoning, as it is stored."""
    summary = item.get("summary")
    parts = [part.get("text") for part in summary if isinstance(part, dict)] if isinstance(summary, list) else []
    return joined_lines(text for text in parts if isinstance(text, str))


def _note(rest: list[Fields]) -> str:
    return "(its output follows in the next message)" if rest else ""


def input_items(given: object) -> list[Fields]:
    """``input`` as items; a string becomes a user message. Raises InvalidRequest if an item is not an object."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    return all_of(dict, given if isinstance(given, list) else [], "input")
