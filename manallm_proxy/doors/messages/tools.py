"""Translates ``tools`` and ``tool_choice`` into OpenAI's form."""

from __future__ import annotations

from typing import Any

from manallm_proxy.contract.errors import InvalidRequest, Untranslatable
from manallm_proxy.doors.messages.content import cut
from manallm_proxy.openai.request_fields import Fields, all_of, optional, required, wrong
from manallm_proxy.openai.short_names import sent_name


def tool_fields(asked: Fields) -> Fields:
    """``tools``, ``tool_choice`` and ``parallel_tool_calls`` of a chat request; empty if there are no tools."""
    if "tools" not in asked and "tool_choice" not in asked:
        return {}
    rows = all_of(dict, optional(asked, "tools", list) or [], "tools")
    tools = [_tool(tool, f"tools[{n}]") for n, tool in enumerate(rows)]
    choice = optional(asked, "tool_choice", dict)
    fields = {} if choice is None else _choice(choice, [tool["function"]["name"] for tool in tools])
    return {"tools": tools, **fields} if tools else {}


def long_names(asked: Fields) -> dict[str, str]:
    """The names of tools that a chat gets shorter, by those. Call it after `tool_fields`."""
    names = [tool["name"] for tool in asked.get("tools") or ()]
    return {short: name for name in names if (short := sent_name(name)) != name}


def _tool(tool: Fields, path: str) -> Fields:
    kind = optional(tool, "type", str, path + ".")
    if kind not in (None, "custom"):
        raise Untranslatable(
            f"'{path}' is of type '{cut(kind)}', a tool that Anthropic's servers run; "
            "only tools that the client runs are served here (type 'custom', with an input_schema)",
            param=path,
        )
    callers = optional(tool, "allowed_callers", list, path + ".")
    if callers and "direct" not in callers:
        raise Untranslatable(
            f"'{path}' may be called only by code that Anthropic's servers run: allow 'direct' calls, or ask a provider"
            " that speaks Messages itself",
            param=f"{path}.allowed_callers",
        )
    path += "."
    function: Fields = {"name": sent_name(required(tool, "name", str, path))}
    if (description := optional(tool, "description", str, path)) is not None:
        function["description"] = description
    function["parameters"] = required(tool, "input_schema", dict, path)
    if (strict := optional(tool, "strict", bool, path)) is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


def _choice(choice: Fields, names: list[str]) -> Fields:
    fields: Fields = {"tool_choice": _wanted(choice, names)}
    if (single := optional(choice, "disable_parallel_tool_use", bool, "tool_choice.")) is not None:
        fields["parallel_tool_calls"] = not single
    return fields


def _wanted(choice: Fields, names: list[str]) -> Any:
    match required(choice, "type", str, "tool_choice."):
        case "auto":
            return "auto"
        case "none":
            return "none"
        case "any":
            if not names:
                raise InvalidRequest("'tool_choice' asks for a tool, and 'tools' has none", param="tool_choice")
            return "required"
        case "tool":
            name = required(choice, "name", str, "tool_choice.")
            if sent_name(name) not in names:
                raise InvalidRequest(
                    f"'tool_choice' names '{cut(name)}', which is not in 'tools'", param="tool_choice.name"
                )
            return {"type": "function", "function": {"name": sent_name(name)}}
    raise wrong("tool_choice.type", "'auto', 'any', 'tool' or 'none'")
