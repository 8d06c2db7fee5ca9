"""What real clients talk to through the proxy: a scripted server whose models behave as their names say."""

from __future__ import annotations

import json
from typing import Any, Final

from tests.upstreams import DONE, USAGE, Connection, Seen, chunk, completion

SAID: Final = "from-the-tool"
"""What a tool prints, or returns."""
ARGUMENTS: Final[dict[str, dict[str, Any]]] = {
    "exec_command": {"cmd": f"echo {SAID}"},
    "bash": {"command": f"echo {SAID}", "description": "says it"},
    "Bash": {"command": f"echo {SAID}"},
    "say": {"city": "Bergen"},
    "functions__exec": {"input": f"text((await tools.exec_command({{cmd: 'echo {SAID}'}})).output)"},
}
"""By tool that a client brings itself, of which some bring others too; any other gets a city."""


def _frame(finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    row = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(row).encode() + b"\n\n"


async def server(connection: Connection, seen: Seen) -> None:
    """``m`` says Hello, or calls a tool where it is told to, and then says what that gave. ``dead`` is 502, ``mute``
    ends before a word, ``cut`` after one."""
    asked = seen.json
    match asked["model"]:
        case "dead":
            await connection.reply({"error": {"message": "out of order"}}, "502 Bad Gateway")
        case "mute":
            await connection.head()
            await connection.chunk(chunk(role=True))
            connection.writer.close()
        case "cut":
            await connection.head()
            await connection.chunk(chunk("one"))
            connection.writer.close()
        case _ if "input" in asked:
            row = {"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}
            await connection.reply({"object": "list", "data": [row], "model": "m", "usage": {"prompt_tokens": 2}})
        case _:
            await _chat(connection, asked)


async def _chat(connection: Connection, asked: dict[str, Any]) -> None:
    last = [message for message in asked["messages"] if message["role"] != "system"][-1]  # Claude Code ends with one
    tools = {tool["function"]["name"] for tool in asked.get("tools") or []}
    if last["role"] == "tool":
        await _says(connection, asked, f"It says {SAID}." if SAID in str(last["content"]) else "It says nothing.")
    elif tools and "use the tool" in str(last["content"]):
        name = next((name for name in ARGUMENTS if name in tools), min(tools))
        await _calls(
            connection, asked, {"name": name, "arguments": json.dumps(ARGUMENTS.get(name, {"city": "Bergen"}))}
        )
    else:
        await _says(connection, asked, "Hello")


async def _says(connection: Connection, asked: dict[str, Any], text: str) -> None:
    if not asked.get("stream"):
        await connection.reply(completion(text))
        return
    half = len(text) // 2
    await _stream(connection, [chunk(role=True), chunk(text[:half]), chunk(text[half:]), chunk(finish="stop")])


async def _calls(connection: Connection, asked: dict[str, Any], function: dict[str, str]) -> None:
    call = {"id": "call_1", "type": "function", "function": function}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        await connection.reply({**completion(), "choices": [choice]})
        return
    begun = {**call, "index": 0, "function": {"name": function["name"], "arguments": ""}}
    rest = {"index": 0, "function": {"arguments": function["arguments"]}}
    parts = [_frame(role="assistant", tool_calls=[begun]), _frame(tool_calls=[rest]), _frame("tool_calls")]
    await _stream(connection, parts)


async def _stream(connection: Connection, frames: list[bytes]) -> None:
    await connection.head()
    for frame in (*frames, USAGE, DONE):
        await connection.chunk(frame)
    await connection.end()
