"""Reads ``tools`` and ``tool_choice`` in all their forms, for dialects that express them differently."""

from __future__ import annotations

from typing import Any, Final, Literal

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.records import frozen
from manallm_proxy.openai.request_fields import Fields, all_of, optional, required, wrong

Mode = Literal["auto", "none", "required"]
_MODES: Final[dict[str, Mode]] = {"auto": "auto", "none": "none", "required": "required"}


@frozen
class ToolChoice:
    """A parsed ``tool_choice``. ``mode`` None: not given. ``names`` None: every tool may be called."""

    mode: Mode | None = None
    names: frozenset[str] | None = None

    def allowed(self, tools: list[Fields]) -> list[Fields]:
        """The subset of `tools` (see `function_tools`) that may be called.

        Raises InvalidRequest if a call is required but no tool is left.
        """
        if not tools and self.mode == "required":
            raise InvalidRequest("'tool_choice' asks for a tool, and 'tools' has none", param="tool_choice")
        if self.names is None or not tools:
            return tools
        chosen = [tool for tool in tools if tool["function"]["name"] in self.names]
        if not chosen:
            raise InvalidRequest("'tool_choice' names no tool that is in 'tools'", param="tool_choice")
        return chosen


def function_tools(asked: Fields) -> list[Fields]:
    """``tools`` in OpenAI's form; empty if there are none.

    Raises InvalidRequest for one without a function, for a function without a name, and for parameters that are no
    object.
    """
    tools = all_of(dict, optional(asked, "tools", list) or [], "tools")
    for n, tool in enumerate(tools):
        function, path = required(tool, "function", dict, f"tools[{n}]."), f"tools[{n}].function."
        required(function, "name", str, path)
        optional(function, "parameters", dict, path)
    return tools


def tool_choice(asked: Fields) -> ToolChoice:
    """The choice of the request `asked`. Raises InvalidRequest if it is malformed."""
    choice: Any = asked.get("tool_choice")
    if choice is None:
        return ToolChoice()
    if isinstance(choice, str) and choice in _MODES:
        return ToolChoice(_MODES[choice])
    if isinstance(choice, dict):
        if choice.get("type") == "function":
            return ToolChoice("required", frozenset({_name_in(choice, "tool_choice.")}))
        if choice.get("type") == "allowed_tools":
            allowed = required(choice, "allowed_tools", dict, "tool_choice.")
            path = "tool_choice.allowed_tools.tools"
            rows = all_of(dict, required(allowed, "tools", list, "tool_choice.allowed_tools."), path)
            mode: Mode = "required" if allowed.get("mode") == "required" else "auto"
            return ToolChoice(mode, frozenset(_name_in(row, f"{path}[{n}].") for n, row in enumerate(rows)))
    raise wrong("tool_choice", "'auto', 'none', 'required', a function or allowed_tools")


def _name_in(holder: Fields, path: str) -> str:
    return str(required(required(holder, "function", dict, path), "name", str, path + "function."))
