"""``explain`` for each door: what a provider that speaks only some formats is asked, and what it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manallm_proxy.gateway.explain import DOORS
from manallm_proxy.gateway.gateway import DOORS as ROUTES
from tests.native_servers import speaks_messages, speaks_responses
from tests.ollama_box import box
from tests.proxy import HI, openai, proxy, run, settings
from tests.upstreams import answers, each, upstream

ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat/completions": ("/v1/chat/completions", HI),
    "messages": ("/v1/messages", {**HI, "max_tokens": 9}),
    "responses": ("/v1/responses", {"input": "hi"}),
    "api/chat": ("/api/chat", {**HI, "stream": False}),
}
CHAINS = {
    "all": ["messages/m", "responses/m", "chat/m"],
    "no-chat": ["messages/m", "responses/m"],
    "messages": ["messages/m"],
    "chat": ["chat/m"],
}


def test_each_door_can_be_asked_for() -> None:
    """By the name that requests have in ``/v1/requests``."""
    assert set(DOORS) == {door.name for door in ROUTES.values()} | {"responses"}


async def test_an_alias_is_explained_for_what_it_is_for(tmp_path: Path) -> None:
    """By its name, as the start screen and the health report guess it; a door that is named has the last word."""
    async with box("qwen2.5:7b", "nomic-embed-text") as gpu:
        gpu.put("qwen2.5:7b")
        config = settings({"box": {"kind": "ollama", "base_url": gpu.url}}, ["box/*"])
        config["aliases"]["mana/embed"] = {"chain": ["box/*"]}
        async with proxy(config, tmp_path) as p:
            status, _, headers = await p.post("/v1/embeddings", {"model": "mana/embed", "input": "a"})
            told = (await p.get("/v1/explain?model=mana/embed"))[1]
            assert (status, told["door"], told["serves"]) == (200, "embeddings", headers["x-mana-llm-resolved"])
            assert told["serves"] == "box/nomic-embed-text"
            told = (await p.get("/v1/explain?model=mana/embed&door=chat/completions"))[1]
            assert (told["door"], told["serves"]) == ("chat/completions", "box/qwen2.5:7b")


async def test_what_it_says_is_what_happens(tmp_path: Path) -> None:
    """Each door and chain, and then a request; without a door it is the first of three that somebody takes."""
    async with (
        upstream(each(answers)) as chat,
        upstream(each(speaks_messages)) as messages,
        upstream(each(speaks_responses)) as responses,
    ):
        providers = {
            "chat": openai(chat.url),
            "messages": openai(messages.url, speaks=["messages"]),
            "responses": openai(responses.url, speaks=["responses"]),
        }
        config = settings(providers)
        config["aliases"] = {f"mana/{name}": {"chain": chain} for name, chain in CHAINS.items()}
        config["default"] = "mana/all"
        async with proxy(config, tmp_path) as p:
            for name in CHAINS:
                for door, (path, body) in ASKED.items():
                    code, told = await p.get(f"/v1/explain?model=mana/{name}&door={door}")
                    assert (code, told["door"]) == (200, door)
                    status, _, headers = await p.post(path, {**body, "model": f"mana/{name}"})
                    assert told["serves"] == headers.get("x-mana-llm-resolved"), (name, door, told)
                    assert status == (200 if told["serves"] else 400), (name, door)
            told = (await p.get("/v1/explain"))[1]
            assert (told["door"], told["serves"]) == ("chat/completions", "chat/m")
            rows = [(row["target"], row["usable"], row["reason"], row["detail"]) for row in told["chain"]]
            assert rows == [
                ("messages/m", False, "dialect", "its provider speaks messages, and no chat"),
                ("responses/m", False, "dialect", "its provider speaks responses, and no chat"),
                ("chat/m", True, None, None),
            ]
            defaults = [(await p.get(f"/v1/explain?model=mana/{name}"))[1] for name in ("messages", "no-chat")]
            assert [(told["door"], told["serves"]) for told in defaults] == [
                ("messages", "messages/m"),
                ("responses", "responses/m"),
            ]
            told = (await p.get("/v1/explain?model=mana/messages&door=audio/speech"))[1]
            assert (told["serves"], told["chain"][0]["detail"]) == (None, "only a provider of kind openai takes it")
            told = (await p.get("/v1/explain?model=*"))[1]
            assert [(each["model"], each["door"]) for each in told["models"]] == [
                ("mana/all", "chat/completions"),
                ("mana/no-chat", "responses"),
                ("mana/messages", "messages"),
                ("mana/chat", "chat/completions"),
            ]
            told = (await p.get("/v1/explain?model=*&door=messages"))[1]
            assert [each["serves"] for each in told["models"]] == ["messages/m"] * 3 + ["chat/m"]
            code, body = await p.get("/v1/explain?door=chat")
            assert (code, body["error"]["param"]) == (400, "door") and "chat/completions" in body["error"]["message"]

            exit_code, output = await run("explain", "mana/messages", "--url", p.url)
            assert (exit_code, output.splitlines()) == (
                0,
                ["mana/messages: messages/m would serve (messages)", "> messages/m  ready"],
            )
            exit_code, output = await run("explain", "mana/all", "--door", "messages", "--url", p.url)
            assert (exit_code, output.splitlines()) == (
                0,
                [
                    "mana/all: messages/m would serve (messages)",
                    "> messages/m   ready",
                    "  responses/m  dialect  its provider speaks responses, and no chat",
                    "  chat/m       ready",
                ],
            )
