"""Translates ``tools`` and ``tool_choice`` (functions, namespaces, custom tools) into a chat's functions.

Items may offer tools, too: codex sends all of its own as ``additional_tools`` to models that it knows, and more of them
come with what the client's own ``tool_search`` has found. A chat has one list, in which each stands once.

Hosted tools run at OpenAI, not here. ``web_search`` is dropped, and the log says so, since codex always offers it.
``file_search`` is dropped unless ``tool_choice`` is ``required``, and so is ``image_generation`` beside tools of the
client's own, where codex and Cline always offer it; all others only if ``tool_choice`` is ``none``; else refused.
OpenAI's own ``tool_search`` is dropped as well: what it would search is sent as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.errors import InvalidRequest, Untranslatable
from manallm_proxy.contract.records import define
from manallm_proxy.doors.responses.tool_names import INPUT, SEARCH, Tool, ToolNames
from manallm_proxy.openai.request_fields import Fields, all_of, optional, required, typed, wrong

_WEB_SEARCH: Final = "web_search"
"""Prefix of the type, which may also be ``web_search_preview`` or end in a date."""
_FILE_SEARCH: Final = "file_search"
_IMAGES: Final = "image_generation"
_OWN: Final = ("function", "custom", "namespace")
OFFERING: Final = ("additional_tools", "tool_search_output")
"""Types of items that offer tools. An item is compared with each: its type may be anything."""


class UnsupportedTool(Untranslatable):
    """A tool that this door cannot offer."""

    code = "unsupported_tool"


@define
class Tools:
    """The tools of a request. ``rows``: the chat's ``tools``; ``choice``: its ``tool_choice`` (None: left out)."""

    names: ToolNames = field(factory=ToolNames)
    rows: list[Fields] = field(factory=list, repr=False)
    choice: Any = field(default=None, repr=False)
    dropped: list[str] = field(factory=list)
    """Types of tools that were dropped, safe to log."""

    def read(self, asked: Fields, offering: Iterable[tuple[Fields, str]] = ()) -> None:
        """Adds a request's tools, the first time. Raises UnsupportedTool and InvalidRequest, with the tool's path.

        `offering`: items that offer tools, each with its path.
        """
        given = [
            (tool, f"tools[{n}].") for n, tool in enumerate(all_of(dict, optional(asked, "tools", list) or [], "tools"))
        ]
        more: list[tuple[Fields, str]] = []
        for item, path in offering:
            rows = all_of(dict, optional(item, "tools", list, path + ".") or [], path + ".tools")
            more += [(tool, f"{path}.tools[{n}].") for n, tool in enumerate(rows)]
        choice = asked.get("tool_choice")
        self._offer(given, more, choice)
        self._choose(choice)

    def _offer(self, given: list[tuple[Fields, str]], more: list[tuple[Fields, str]], choice: object) -> None:
        """Adds those outside of a namespace first, see `ToolNames.add`; of `more` those that are not there yet."""
        inside: list[tuple[str, Fields, str, bool]] = []
        has_own = any(tool.get("type") in _OWN for rows in (given, more) for tool, _ in rows)
        for rows, again in ((given, False), (more, True)):
            for tool, path in rows:
                kind = required(tool, "type", str, path)
                if kind in ("function", "custom"):
                    self._add(tool, path, None, again=again)
                elif kind == "namespace":
                    inside.append((required(tool, "name", str, path), tool, path, again))
                elif kind == SEARCH and tool.get("execution") == "client":
                    self._add_search(tool, path)
                else:
                    self._drop(kind, path, choice, beside_own=has_own)
        for namespace, tool, path, again in inside:
            rows = [
                (row, f"{path}tools[{n}].")
                for n, row in enumerate(all_of(dict, required(tool, "tools", list, path), f"{path}tools"))
            ]
            for row, at in rows:
                self._add(row, at, namespace, again=again)

    def _add_search(self, tool: Fields, path: str) -> None:
        """A search for tools that the client runs."""
        if self.names.find(SEARCH) is None:
            self.names.add(Tool(SEARCH, "search"))
            description = optional(tool, "description", str, path)
            self.rows.append(_row(SEARCH, description, optional(tool, "parameters", dict, path)))

    def _add(self, tool: Fields, path: str, namespace: str | None, *, again: bool) -> None:
        """`again`: it may be there already, which was offered earlier, and has the same name."""
        kind = required(tool, "type", str, path)
        name = required(tool, "name", str, path)
        if not name:
            raise wrong(path + "name", "a name")
        if again and self.names.find(name, namespace) is not None:
            return
        if kind == "custom":
            flat = self.names.add(Tool(name, "custom", namespace))
            self.rows.append(_row(flat, _custom_description(tool, path), _INPUT_SCHEMA))
        elif kind == "function":
            description = optional(tool, "description", str, path)
            parameters = optional(tool, "parameters", dict, path)
            flat = self.names.add(Tool(name, "function", namespace, _hides(parameters)))
            self.rows.append(_row(flat, description, parameters, strict=optional(tool, "strict", bool, path)))
        else:
            raise _unsupported(kind, path[:-1])

    def _drop(self, kind: str, path: str, choice: object, *, beside_own: bool) -> None:
        needed = choice == "required" and not (kind == SEARCH or kind.startswith(_WEB_SEARCH))
        known = kind in (_FILE_SEARCH, SEARCH) or kind.startswith(_WEB_SEARCH) or (kind == _IMAGES and beside_own)
        if needed or not (known or choice == "none"):
            raise _unsupported(kind, path[:-1])
        self.dropped.append(_WEB_SEARCH if kind.startswith(_WEB_SEARCH) else kind if known else "of OpenAI's own")

    def _choose(self, choice: object) -> None:
        if isinstance(choice, dict):
            self._choose_named(choice)
        elif choice in ("auto", "none", "required"):
            if choice == "required" and not self.rows and not self.dropped:
                raise InvalidRequest("'tool_choice' asks for a tool, and 'tools' has none", param="tool_choice")
            self.choice = choice
        elif choice is not None:
            raise wrong("tool_choice", "'auto', 'none', 'required' or an object")
        if not self.rows:
            self.choice = None  # servers refuse tool_choice without tools

    def _choose_named(self, choice: Fields) -> None:
        kind = required(choice, "type", str, "tool_choice.")
        if kind in ("function", "custom"):
            self.choice = {"type": "function", "function": {"name": self._named(choice, "tool_choice.")}}
        elif kind == "allowed_tools":
            self._allow(choice)
        else:
            raise _unsupported(kind, "tool_choice")

    def _allow(self, choice: Fields) -> None:
        """Sends only the allowed tools, since not every server knows ``allowed_tools``."""
        mode = required(choice, "mode", str, "tool_choice.")
        if mode not in ("auto", "required"):
            raise wrong("tool_choice.mode", "'auto' or 'required'")
        path = "tool_choice.tools"
        allowed: set[str] = set()
        for n, row in enumerate(all_of(dict, required(choice, "tools", list, "tool_choice."), path)):
            at = f"{path}[{n}]"
            kind = required(row, "type", str, at + ".")
            if kind.startswith(_WEB_SEARCH):
                self.dropped.append(_WEB_SEARCH)
            elif kind in ("function", "custom"):
                allowed.add(self._named(row, at + "."))
            elif kind == SEARCH:
                allowed.add(SEARCH)
            else:
                raise _unsupported(kind, at)
        self.rows = [row for row in self.rows if row["function"]["name"] in allowed]
        self.choice = mode

    def _named(self, holder: Fields, path: str) -> str:
        name, namespace = required(holder, "name", str, path), optional(holder, "namespace", str, path)
        if self.names.find(name, namespace) is None:
            raise InvalidRequest(f"'{path}name' names no tool that is in 'tools'", param=path + "name")
        return self.names.flat(name, namespace)


_INPUT_SCHEMA: Final[Fields] = {
    "type": "object",
    "properties": {INPUT: {"type": "string"}},
    "required": [INPUT],
    "additionalProperties": False,
}


def _row(name: str, description: str | None, parameters: Fields | None, *, strict: bool | None = None) -> Fields:
    function: Fields = {"name": name}
    if description is not None:
        function["description"] = description
    if parameters is not None:
        function["parameters"] = parameters
    if strict:  # false is the default, and not every server knows the field
        function["strict"] = True
    return {"type": "function", "function": function}


def _hides(parameters: Fields | None) -> bool:
    """Whether OpenAI would encrypt some argument, as codex asks for what its agents tell each other."""
    properties = parameters.get("properties") if parameters else None
    rows = properties.values() if isinstance(properties, dict) else ()
    return any(isinstance(row, dict) and row.get("encrypted") is True for row in rows)


def _custom_description(tool: Fields, path: str) -> str | None:
    """The description with the grammar of the tool's input, since a function has no field for that."""
    description: str | None = optional(tool, "description", str, path)
    shape = optional(tool, "format", dict, path)
    if shape is None or shape.get("type") != "grammar":
        return description
    at = path + "format."
    syntax = typed(str, shape.get("syntax", "lark"), at + "syntax")
    definition = required(shape, "definition", str, at)
    rule = f"The input must match this grammar ({syntax}):\n{definition}"
    return f"{description}\n\n{rule}" if description else rule


def _unsupported(kind: str, path: str) -> UnsupportedTool:
    return UnsupportedTool(
        f"{path} is of type '{kind[:64]}', which is not served here: "
        "offer tools of type 'function', 'custom' or 'namespace'",
        param=path,
    )
