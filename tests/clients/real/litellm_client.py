"""Plays a user of LiteLLM against a proxy, by each of its ways to one; prints what it saw as JSON.

``python litellm_client.py BASE_URL``
"""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm

litellm.telemetry = False
litellm.suppress_debug_info = True
USER = [{"role": "user", "content": "say hi"}]
TOOL = {
    "type": "function",
    "function": {"name": "say", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def main(base: str) -> dict[str, Any]:
    ways: dict[str, dict[str, Any]] = {
        "openai": {"model": "openai/mana/{}", "api_base": f"{base}/v1"},
        "responses": {"model": "openai/responses/mana/{}", "api_base": f"{base}/v1"},
        "anthropic": {"model": "anthropic/mana/{}", "api_base": base},
        "ollama": {"model": "ollama_chat/mana/{}", "api_base": base},
    }
    saw: dict[str, Any] = {}

    def ask(way: dict[str, Any], name: str, **more: Any) -> Any:
        fields = {**way, "model": way["model"].format(name), "api_key": "unused", "num_retries": 0, "max_retries": 0}
        return litellm.completion(**{"messages": USER, **fields, **more})

    def streamed(way: dict[str, Any], name: str) -> str:
        return "".join(part.choices[0].delta.content or "" for part in ask(way, name, stream=True))

    for what, way in ways.items():
        row: dict[str, Any] = {"plain": ask(way, "test").choices[0].message.content}
        row["streamed"] = streamed(way, "test")
        told = ask(way, "test", messages=[{"role": "user", "content": "use the tool"}], tools=[TOOL])
        call = told.choices[0].message.tool_calls[0].function
        row["tool"] = [call.name, json.loads(call.arguments)]
        row["dies"] = streamed(way, "dies")
        try:
            row["cut"] = ["answered", streamed(way, "cut")]
        except Exception as error:
            row["cut"] = ["raised", type(error).__name__]
        saw[what] = row
    return saw


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
