"""Memory that one long prompt has used serves the next one, over a real socket: new pages cost more than the prompt."""

from __future__ import annotations

import asyncio
import mmap
from pathlib import Path
from typing import Final

import msgspec
import pytest

from tests.proxy import openai, process, settings
from tests.stall import raw_post
from tests.upstreams import answers, each, upstream

SIZE: Final = 900_000
PROMPTS: Final = 40
TOGETHER: Final = 4


def pages_touched(pid: int) -> int:
    """Pages that a process and its children have touched for the first time, so far (proc(5): ``minflt``)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(stat[7]) + sum(pages_touched(int(child)) for child in children)


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "workers"])
async def test_long_prompts_share_their_memory(tmp_path: Path, workers: tuple[str, ...]) -> None:
    body = msgspec.json.encode({"model": "gpu/m", "messages": [{"role": "user", "content": "x" * SIZE}]})
    async with upstream(each(answers)) as gpu:
        async with process(settings({"gpu": openai(gpu.url)}), tmp_path, None, *workers) as running:
            port = int(running.url.rpartition(":")[2])
            for _ in range(PROMPTS // TOGETHER):  # after the first ones each worker has what it needs
                await asyncio.gather(*[raw_post(port, "/v1/chat/completions", body) for _ in range(TOGETHER)])
            before = pages_touched(running.pid)
            for _ in range(PROMPTS // TOGETHER):
                asked = [raw_post(port, "/v1/chat/completions", body) for _ in range(TOGETHER)]
                assert all(b" 200 " in answer[:20] for answer in await asyncio.gather(*asked))
            touched = pages_touched(running.pid) - before
    assert touched / PROMPTS < SIZE / mmap.PAGESIZE / 10
