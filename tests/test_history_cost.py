"""What it costs to write a long history anew: not more than a few times its bytes, and time that grows as they do."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.histories import strict
from tests.proxy import openai, process, settings
from tests.stall import peak, raw_post
from tests.upstreams import answers, each, upstream

MIB = 2**20


def unwanted(asked: Any) -> str:
    """As servers say what the model's name asks for."""
    rows = asked["messages"]
    roles = [row["role"] for row in rows]
    match asked["model"]:
        case "reasoning" if any("reasoning_content" in row for row in rows):
            return "property 'reasoning_content' is unsupported"
        case "alternate" if any(one == other for one, other in pairwise(roles)):
            return "Conversation roles must alternate user/assistant/user/assistant/..."
        case "system" if "system" in roles[1:]:
            return "System message must be at the beginning."
    return ""


@pytest.mark.parametrize("model", ["reasoning", "alternate", "system"])
@pytest.mark.parametrize("size", [4 * MIB, 2000])
async def test_the_memory_of_a_history_that_is_written_anew(model: str, size: int, tmp_path: Path) -> None:
    """Of one long text, in letters that take Python four times as much, and of many texts."""
    role = "system" if model == "system" else "user"
    row = {"role": role, "content": "x" * size + "\U0001f600"}
    rows = [row] * (16 * MIB // size)
    odd: dict[str, Any] = {"role": "assistant", "content": "hm", "reasoning_content": "Hm."}
    asked = {"model": f"gpu/{model}", "stream": False, "messages": [*rows, odd, {"role": "user", "content": "go"}]}
    if model != "reasoning":
        del odd["reasoning_content"]
    async with upstream(each(strict(unwanted, answers))) as gpu:
        async with process(settings({"gpu": openai(gpu.url)}), tmp_path) as running:
            port, body = int(running.url.rpartition(":")[2]), json.dumps(asked, ensure_ascii=False).encode()
            for requests in (2, 3):
                with peak(running.pid) as taken:
                    assert (await raw_post(port, "/v1/chat/completions", body)).startswith(b"HTTP/1.1 200")
                assert len(gpu.posts) == requests
                assert taken.mib <= 3 * len(body) / MIB + 32, requests
