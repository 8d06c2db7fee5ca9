"""Maps the names of tools to those that a provider gets, and back.

Chat completions have one flat list of functions. A tool inside a namespace gets a unique name there; a custom tool
becomes a function with the one property ``input``.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final, Literal

from attrs import field

from manallm_proxy.contract.records import define, frozen
from manallm_proxy.openai.json_object import DecodeErrors, decode_text, json_text

LONGEST_NAME: Final = 64
_JOINT: Final = "__"
_ODD: Final = re.compile(r"[^A-Za-z0-9_-]")
SEARCH: Final = "tool_search"
"""The type and the name of a search for more tools."""
INPUT: Final = "input"
"""The only property of a function that represents a custom tool."""


@frozen
class Tool:
    """A tool as the client knows it."""

    name: str
    kind: Literal["function", "custom", "search"] = "function"
    namespace: str | None = None
    hides: bool = False
    """Whether OpenAI would encrypt some of its arguments."""


@define
class ToolNames:
    """All names of one request, in both directions."""

    _flat: dict[tuple[str | None, str], str] = field(factory=dict)
    _tools: dict[str, Tool] = field(factory=dict)

    def add(self, tool: Tool) -> str:
        """Adds `tool`; returns its flat name. Add those without a namespace first, since they keep their names."""
        flat = tool.name if tool.namespace is None else self._unused(tool.namespace, tool.name)
        self._flat[tool.namespace, tool.name] = flat
        self._tools[flat] = tool
        return flat

    def flat(self, name: str, namespace: str | None) -> str:
        """The flat name for a call in the history, whose tool may no longer be offered."""
        return self._flat.get((namespace, name)) or (name if namespace is None else self._unused(namespace, name))

    def find(self, name: str, namespace: str | None = None) -> Tool | None:
        """The tool of that name, if it is offered."""
        return self._tools.get(self._flat.get((namespace, name), ""))

    def tool(self, flat: str) -> Tool:
        """The tool that a model calls by `flat`. An unknown name is forwarded: clients report that to the model."""
        known = self._tools.get(flat)
        if known is not None:
            return known
        inside = [tool for tool in self._tools.values() if tool.namespace is not None and tool.name == flat]
        return inside[0] if len(inside) == 1 else Tool(flat)  # small models drop the prefix

    def _unused(self, namespace: str, name: str) -> str:
        flat = flat_name(namespace, name)
        return flat if flat not in self._tools else flat_name(namespace, name, unique=True)


def flat_name(namespace: str, name: str, *, unique: bool = False) -> str:
    """``("multi_agent", "spawn")`` -> ``"multi_agent__spawn"``: contains `name`, differs from it, at most 64 long.

    If that is too long, or `unique`, the namespace is shortened and a hash appended to it.
    """
    inner, outer = _ODD.sub("_", name), _ODD.sub("_", namespace) or "ns"
    if unique or len(outer) + len(_JOINT) + len(inner) > LONGEST_NAME:
        digest = hashlib.sha256(f"{namespace}\0{name}".encode()).hexdigest()[:8]
        room = LONGEST_NAME - len(_JOINT) - len(inner) - len(digest) - 1
        outer = f"{outer[:room]}_{digest}" if room > 0 else digest[: max(1, room + 1 + len(digest))]
    if len(inner) >= LONGEST_NAME:  # no room for anything else
        inner = inner[: LONGEST_NAME - len(outer) - len(_JOINT)]
    joint = _JOINT[: max(0, LONGEST_NAME - len(outer) - len(inner))]
    return f"{outer}{joint}{inner}"


def input_to_arguments(text: str) -> str:
    """A custom tool's input as a function's arguments."""
    return json_text({INPUT: text})


def arguments_to_input(arguments: str) -> str:
    """A function's arguments as a custom tool's input. Arguments without that one property are the input itself."""
    try:
        given: Any = decode_text(arguments)
    except DecodeErrors:
        return arguments
    if isinstance(given, dict) and (INPUT in given or len(given) == 1):
        given = given[INPUT] if INPUT in given else next(iter(given.values()))
    return given if isinstance(given, str) else json_text(given)
