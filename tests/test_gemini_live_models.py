"""Google's list of models, as ``check --live`` reads it: paged, refused, broken or silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import import_module
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from attrs import define

from manallm_proxy.contract.provider import ModelInfo, ModelList
from manallm_proxy.contract.provider_errors import BadResponse, ConnectTimeout, KeyRejected, ProviderError, ServerFailed
from manallm_proxy.http_client.api import Address
from manallm_proxy.providers.gemini.wire import KEY_HEADER, versioned

KEY = "AIzaNotARealKey-0123456789"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@define
class Google:
    """Answers each GET of the list with ``answer``."""

    url: str = ""
    answer: Answer | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        assert request.headers[KEY_HEADER] == KEY and self.answer is not None
        return await self.answer(request)

    @property
    def address(self) -> Address:
        return Address("google", versioned(self.url), KEY, key_header=KEY_HEADER)


async def live_models(address: Address, seconds: float) -> ModelList:
    """Imported by the worker that runs these tests, and by no other: Google's library takes half a second."""
    listed: ModelList = await import_module("manallm_proxy.providers.gemini.live_models").live_models(address, seconds)
    return listed


@pytest.fixture
async def google() -> AsyncIterator[Google]:
    fake = Google()
    app = web.Application()
    app.router.add_get("/v1beta/models", fake.handle)
    async with TestServer(app) as server:
        fake.url = str(server.make_url(""))
        yield fake


async def test_every_page(google: Google) -> None:
    """Names without their folder, which an entry may give as well; what only embeds is known to."""
    pages: dict[str | None, dict[str, Any]] = {
        None: {
            "models": [{"name": "models/a", "supportedGenerationMethods": ["generateContent"]}],
            "nextPageToken": "t",
        },
        "t": {"models": [{"name": "models/b", "supportedGenerationMethods": ["embedContent"]}, {}]},
    }

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(pages[request.query.get("pageToken")])

    google.answer = answer
    listed = await live_models(google.address, 5)
    assert listed.fault is None
    assert listed.models == (
        ModelInfo("a", aliases=("models/a",)),
        ModelInfo("b", 0, frozenset({"embedding"}), ("models/b",)),
    )


BAD_KEY = {"error": {"code": 400, "message": f"API key not valid: {KEY}", "status": "INVALID_ARGUMENT"}}


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, BAD_KEY, KeyRejected),
        (401, {"error": {"code": 401, "message": f"no {KEY}"}}, KeyRejected),
        (502, {}, ServerFailed),
        (302, {}, BadResponse),
    ],
)
async def test_refusals(google: Google, status: int, body: Any, kind: type[ProviderError]) -> None:
    """By their status, without our key, and not followed elsewhere."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(body, status=status, headers={"Location": "/v1beta/models"} if status == 302 else None)

    google.answer = answer
    with pytest.raises(kind) as caught:
        await live_models(google.address, 5)
    assert KEY not in f"{caught.value!r} {caught.value.message}"


async def test_something_else(google: Google) -> None:
    """It is alive, and its list unknown."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="<html></html>", content_type="text/html")

    google.answer = answer
    listed = await live_models(google.address, 5)
    assert (listed.models, listed.fault) == ((), "it is no list of models")


async def test_silence(google: Google) -> None:
    """Bounded in time."""

    async def answer(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    google.answer = answer
    with pytest.raises(ConnectTimeout):
        await live_models(google.address, 0.1)
