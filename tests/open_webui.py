"""Open WebUI's server, as a client of ours: its API, and chats as its page has them."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.ports import free_port, held
from tests.proxy import alive
from tests.real_servers import SAID

TOOL = f'''
class Tools:
    def say(self, city: str) -> str:
        """
        says it
        :param city: a city
        """
        return "{SAID}"
'''


@asynccontextmanager
async def open_webui(program: Path, folder: Path, url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """With both connections to `url`, and one tool; the session is its administrator's."""
    port = free_port()
    environ = {
        "OPENAI_API_BASE_URLS": f"{url}/v1",
        "OPENAI_API_KEYS": "unused",
        "OLLAMA_BASE_URLS": url,
        "DATA_DIR": str(folder / "data"),
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "unused",
        "RAG_EMBEDDING_ENGINE": "ollama",  # else it would look for a model at a hub
        **dict.fromkeys(("OFFLINE_MODE", "HF_HUB_OFFLINE", "DO_NOT_TRACK"), "1"),
    }
    command = [str(program), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *command, cwd=folder, env={**os.environ, "HOME": str(folder), **environ}, stdout=log, stderr=log
        )
    try:
        with held(port):
            await alive(f"http://127.0.0.1:{port}", 300)  # it reads gigabytes first
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            signed_in = await posted(session, "/api/v1/auths/signin", {"email": "", "password": ""})
            session.headers["Authorization"] = f"Bearer {signed_in['token']}"
            tool = {"id": "say_tool", "name": "say", "content": TOOL, "meta": {"description": "says it"}}
            await posted(session, "/api/v1/tools/create", tool)
            yield session
    finally:
        child.terminate()
        await child.wait()


async def posted(session: aiohttp.ClientSession, path: str, body: Any) -> Any:
    async with session.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def streamed(session: aiohttp.ClientSession, model: str, words: str) -> tuple[str, str]:
    """What its API streams: text and errors."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": words}]}
    async with session.post("/api/chat/completions", json=body) as response:
        lines = [line for line in (await response.text()).splitlines() if line.startswith("data: {")]
    rows = [json.loads(line.removeprefix("data: ")) for line in lines]
    told = [row["choices"][0]["delta"].get("content") or "" for row in rows if row.get("choices")]
    return "".join(told), "".join(row["error"]["message"] for row in rows if "error" in row)


async def in_a_chat(session: aiohttp.ClientSession, model: str, words: str) -> Any:
    """The answer in a new chat, once it is complete: its server asks, runs the tool, and asks again."""
    asked, answered = str(uuid.uuid4()), str(uuid.uuid4())
    user = {"id": asked, "parentId": None, "childrenIds": [answered], "role": "user", "content": words}
    answer = {"id": answered, "parentId": asked, "childrenIds": [], "role": "assistant", "content": "", "model": model}
    history = {"currentId": answered, "messages": {asked: user, answered: answer}}
    chat = {"title": "t", "models": [model], "messages": [user, answer], "history": history}
    id_ = (await posted(session, "/api/v1/chats/new", {"chat": chat}))["id"]
    body = {
        "model": model,
        "stream": True,
        "messages": [{"role": "user", "content": words}],
        "tool_ids": ["say_tool"],
        "chat_id": id_,
        "id": answered,
        "session_id": "page",
        "user_message": user,
        "background_tasks": {},
    }
    assert (await posted(session, "/api/chat/completions", body))["status"] is True
    async with asyncio.timeout(30):
        while True:
            async with session.get(f"/api/v1/chats/{id_}") as response:
                said = (await response.json())["chat"]["history"]["messages"][answered]
            if said.get("done"):
                return said
            await asyncio.sleep(0.05)
