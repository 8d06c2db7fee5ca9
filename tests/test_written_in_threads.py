"""Answers that may be long are written beside the event loop: 1,500 models' metrics take 20 ms, 1,000 requests 10."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.gateway import operators, status_page
from manallm_proxy.observe import metrics, request_log
from manallm_proxy.observe.metrics import Metrics
from tests.figures import ENDED
from tests.proxy import proxy, settings
from tests.upstreams import answers, each, upstream


@pytest.mark.parametrize(
    ("path", "module", "name"),
    [
        ("/metrics", metrics, "render"),
        ("/v1/requests", request_log, "_whole"),
        ("/v1/requests", operators, "_selected"),
        ("/", status_page, "_with_data"),
    ],
)
async def test_beside_the_loop(
    path: str, module: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: Callable[..., Any] = getattr(module, name)
    threads = set()

    def written(*arguments: Any) -> Any:
        threads.add(threading.current_thread())
        return writes(*arguments)

    async with upstream(each(answers)) as server:
        async with proxy(settings({"gpu": {"kind": "openai", "base_url": server.url}}), tmp_path) as p:
            assert (await p.chat())[0] == 200
            monkeypatch.setattr(module, name, written)
            async with p.client.get(p.url + path, headers={"Accept": "text/html"}) as response:
                assert response.status == 200
    assert threads
    assert threading.main_thread() not in threads


def test_what_is_written_is_of_one_moment() -> None:
    """What is counted while a thread writes is for the next one who asks: a sum belongs to its buckets."""
    counted = Metrics("1.2.3", list)
    counted(ENDED)
    scraped = counted.scraped()
    before = scraped()
    counted(ENDED)
    assert _counts(scraped()) == _counts(before)
    assert _counts(counted.scraped()()) != _counts(before)


def _counts(text: bytes) -> list[bytes]:
    return [line for line in text.splitlines() if line.startswith(b"mana_llm_request")]
