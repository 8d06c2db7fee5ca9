"""Plays a user of LangChain's ChatOllama against a proxy; prints what it saw as one line of JSON.

Run by tests/test_door_ollama_sdks.py: ``python langchain_ollama_chat.py BASE_URL``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings


@tool
def add(a: int) -> int:
    """Adds."""
    return a


def main(base_url: str) -> dict[str, Any]:
    def model(name: str, **more: Any) -> ChatOllama:
        return ChatOllama(model=name, base_url=base_url, **more)

    saw: dict[str, Any] = {}
    answer = model("mana/test", validate_model_on_init=True, temperature=0).invoke("hi")
    saw["chat"] = answer.content
    saw["usage"] = answer.usage_metadata["total_tokens"] if answer.usage_metadata else None
    saw["stream"] = "".join(str(chunk.content) for chunk in model("mana/test").stream("hi"))
    calling = model("mana/tools").bind_tools([add]).invoke("hi")
    saw["tools"] = [[call["name"], call["args"]] for call in calling.tool_calls]
    result = ToolMessage(content="2", tool_call_id=calling.tool_calls[0]["id"])
    saw["tool result"] = model("mana/test").bind_tools([add]).invoke([HumanMessage("hi"), calling, result]).content
    saw["structured"] = model("mana/structured", format="json").invoke("hi").content
    saw["embed"] = OllamaEmbeddings(model="mana/embed", base_url=base_url).embed_documents(["a", "b"])
    try:
        model("mana/broken").invoke("hi")
        saw["broken"] = "nothing"
    except Exception as error:  # whichever it is
        saw["broken"] = type(error).__name__
    return saw


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
