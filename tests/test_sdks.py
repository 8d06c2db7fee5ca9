"""OpenAI's own SDKs as clients, in the versions that people run: Python 1.x and the newest, npm 6 and 7.

They are installed beside the environment by ``make test``, as pinned in tests/clients. Each runs as a process of its
own, since two versions of one package do not fit into one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.needs import require
from tests.proxy import openai, proxy, settings
from tests.sdks import CLIENTS, HERE, INSTALLED, cloud, python, run
from tests.upstreams import each, upstream


@pytest.mark.parametrize("client", CLIENTS)
async def test_an_sdk_sees_openai(tmp_path: Path, client: str) -> None:
    """Chat, stream, helper, tools, structured output, embeddings, models, every error class, a broken stream."""
    language, package = CLIENTS[client]
    async with upstream(each(cloud), ["m"]) as provider:
        config = settings({"gpu": openai(provider.url), "status": openai(provider.url)}, ["gpu/m"])
        for name in ("tools", "structured", "broken", "embed"):
            config["aliases"][f"mana/{name}"] = {"chain": [f"gpu/{name}"]}
        async with proxy(config, tmp_path) as p:
            base = f"{p.url}/v1"
            if language == "python":
                saw = await python(package, "python_sdk.py", base)
            else:
                node = require("node", "npm's SDK needs Node")
                where = require(INSTALLED / "node_modules" / package, "the SDK is installed by make test")
                entry = next(e for e in (where / "index.mjs", where / "index.js") if e.exists())
                saw = await run(str(node), str(HERE / "clients" / "node_sdk.mjs"), str(entry), base)
    assert saw["chat"] == ["Hello", "gpu/m"]
    assert saw["stream"] == saw["helper"] == saw["completion"] == "Hello"
    assert saw["stream_has_choices"] is True
    assert saw["usage"] == [5]
    assert saw["tools"] == [["add", {"a": 1}]]
    assert saw["structured"] == {"ok": True}
    assert saw["embedding"] == [0.5, -0.25]
    assert saw["models"][0] == saw["model"] == "mana/test"
    assert "gpu/m" in saw["models"]
    assert saw["resolved"] == "gpu/m"
    expected = {
        "error 400": ("BadRequestError", 400),
        "error 404": ("NotFoundError", 404),
        "error 409": ("ConflictError", 409),
        "error 422": ("UnprocessableEntityError", 422),
        "error 401": ("InternalServerError", 502),
        "error 429": ("RateLimitError", 429),
        "error alias": ("NotFoundError", 404),
    }
    assert {name: tuple(saw[name][:2]) for name in expected} == expected
    assert saw["broken"][0] == "APIError"
