"""A box that loads models on demand: what waits for a load, what does not, and that no load is ever aborted."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.provider import ModelInfo
from manallm_proxy.routing import boxes
from tests.ollama_box import GIB, Box, box
from tests.proxy import Proxy, openai, proxy, settings
from tests.upstreams import Upstream, answers, each, upstream
from tests.waiting import until

RESOLVED = "x-mana-llm-resolved"


@asynccontextmanager
async def house(
    tmp_path: Path, entry: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[tuple[Proxy, Box, Upstream]]:
    """A box and a cloud after it, in one chain whose first entry is `entry`."""
    async with box() as own, upstream(each(answers)) as cloud:
        own.slow = {"m"}
        providers = {"gpu": own.provider(), "cloud": openai(cloud.url)}
        config = settings(providers, [{"target": "gpu/m", **(entry or {})}, "cloud/m"], **more)
        async with proxy(config, tmp_path) as p:
            yield p, own, cloud


async def health_of(p: Proxy) -> Any:
    return (await p.get("/v1/health"))[1]["providers"]["gpu"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cold_model_has_a_clock_of_its_own(stream: bool, tmp_path: Path) -> None:
    """Its load may take longer than ``first_byte``, and counts against nobody."""
    async with house(tmp_path, {"timeouts": {"first_byte": 0.2}}) as (p, gpu, cloud):
        asking = asyncio.ensure_future(p.stream() if stream else p.chat())
        await until(lambda: gpu.begun == ["m"])
        await asyncio.sleep(0.4)  # longer than first_byte
        gpu.finish("m")
        status, _, headers = await asking
        assert (status, headers[RESOLVED], cloud.posts) == (200, "gpu/m", [])
        assert (await health_of(p))["status"] == "healthy"
        assert (await p.chat())[2][RESOLVED] == "gpu/m"
        assert (gpu.begun, gpu.finished, gpu.aborted) == (["m"], ["m"], [])


async def test_a_load_goes_on_after_its_timeout(tmp_path: Path) -> None:
    """One load however many ask, all are served by the next entry, and traffic comes back with the model."""
    async with house(tmp_path, {"load_timeout": 0.1}) as (p, gpu, _):
        results = await asyncio.gather(*(p.chat() for _ in range(7)))
        assert {headers[RESOLVED] for _, _, headers in results} == {"cloud/m"}
        assert (gpu.begun, gpu.finished, gpu.aborted) == (["m"], [], [])
        gpu.finish("m")
        await until(lambda: gpu.finished == ["m"])
        await until_served_by(p, "gpu/m")
        assert (gpu.begun, gpu.aborted) == (["m"], [])
        assert (await health_of(p))["status"] == "healthy"
        page = p.app.metrics.render()[0].decode()
        for event in ("begun", "finished"):
            assert f'mana_llm_model_loads_total{{event="{event}",model="m",provider="gpu"}} 1' in page


async def until_served_by(p: Proxy, target: str) -> None:
    async with asyncio.timeout(5):
        while (await p.chat())[2][RESOLVED] != target:
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_aborts_no_load(tmp_path: Path) -> None:
    """Not even the only one, nor the one that began it."""
    async with house(tmp_path) as (p, gpu, _):
        first = asyncio.ensure_future(p.chat())
        await until(lambda: gpu.begun == ["m"])
        second = asyncio.ensure_future(p.chat())
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await until(lambda: "client_gone" in p.log.getvalue())
        gpu.finish("m")
        assert (await second)[2][RESOLVED] == "gpu/m"
        assert (gpu.begun, gpu.finished, gpu.aborted) == (["m"], ["m"], [])


async def test_cold_next_does_not_wait(tmp_path: Path) -> None:
    """The load begins, the request moves on at once; on the last entry it waits all the same."""
    async with house(tmp_path, {"cold": "next"}) as (p, gpu, _):
        _, _, headers = await p.chat()
        assert (headers[RESOLVED], headers["x-mana-llm-attempts"]) == ("cloud/m", "1")
        await until(lambda: gpu.begun == ["m"])
        gpu.finish("m")
        await until_served_by(p, "gpu/m")
        assert (gpu.begun, gpu.aborted) == (["m"], [])


async def test_a_loaded_model_that_says_nothing_counts(tmp_path: Path) -> None:
    """Only the clock of what is loaded speaks against it."""
    async with house(tmp_path, {"timeouts": {"first_byte": 0.1}}) as (p, gpu, _):
        gpu.slow.clear()
        assert (await p.chat())[2][RESOLVED] == "gpu/m"
        gpu.mute = True
        for _ in range(2):
            assert (await p.chat())[2][RESOLVED] == "cloud/m"
        row = (await health_of(p))["targets"]["m"]
        assert (row["status"], row["last_error"]) == ("unhealthy", "first_byte_timeout")


async def test_a_load_that_fails_backs_off(tmp_path: Path) -> None:
    """A dozen quick requests begin few loads, and all are served elsewhere."""
    async with house(tmp_path) as (p, gpu, _):
        gpu.slow, gpu.failing = set(), {"m"}
        for _ in range(12):
            assert (await p.chat())[2][RESOLVED] == "cloud/m"
        assert len(gpu.begun) <= 4
        status, answer, _ = await p.chat(model="gpu/m")
        assert (status, answer["error"]["attempts"][0]["reason"]) == (503, "loading")


async def test_a_load_that_fails_says_when_to_come_back(tmp_path: Path) -> None:
    """When the model may be loaded again, as the next request would be told."""
    async with box() as gpu:
        gpu.failing = {"m"}
        async with proxy(settings({"gpu": gpu.provider()}), tmp_path) as p:
            for reason in ("load_failed", "loading"):
                status, answer, headers = await p.chat()
                assert (status, answer["error"]["attempts"][0]["reason"]) == (503, reason)
                assert int(headers["retry-after"]) in (4, 5)


async def test_a_model_that_is_not_installed_is_reported_as_such(tmp_path: Path) -> None:
    """A load that the server refuses as a mistake leaves the answer to the request itself."""

    async def empty(connection: Any, seen: Any) -> None:
        await connection.reply({"error": "model 'm' not found"}, "404 Not Found")

    async def script(connection: Any) -> None:
        while (seen := await connection.request()) is not None:
            if seen.path == "/api/ps":
                await connection.reply({"models": []})
            else:
                await empty(connection, seen)

    async with upstream(script) as gpu:
        config = settings({"gpu": {"kind": "ollama", "base_url": gpu.url, "local": True}})
        async with proxy(config, tmp_path) as p:
            for _ in range(3):
                status, answer, _ = await p.chat()
                assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_the_last_entry_waits_rather_than_fail(tmp_path: Path) -> None:
    """``cold: next`` too; and two models that take turns on one GPU are slow, not unavailable."""
    async with box("m", "n") as gpu:
        gpu.slow = {"m"}
        chain = [{"target": "gpu/m", "cold": "next"}]
        async with proxy(settings({"gpu": gpu.provider()}, chain), tmp_path) as p:
            asking = asyncio.ensure_future(p.chat())
            await until(lambda: gpu.begun == ["m"])
            gpu.finish("m")
            assert (await asking)[0] == 200
            for model in ("n", "m", "n", "m"):
                gpu.loaded.clear()
                await p.app.generation.local.boxes.refresh(1.0)
                assert (await p.chat(model=f"gpu/{model}"))[0] == 200
            assert gpu.aborted == []


async def test_another_window_is_cold(tmp_path: Path) -> None:
    """A model that is loaded with another window is loaded again, by one load, which has a load's timeout."""
    async with house(tmp_path, {"options": {"num_ctx": 8192}, "load_timeout": 0.1}) as (p, gpu, _):
        gpu.put("m", 4096)
        assert (await p.chat())[2][RESOLVED] == "cloud/m"
        gpu.finish("m")
        await until_served_by(p, "gpu/m")
        assert (gpu.begun, gpu.loaded["m"]["context_length"]) == (["m"], 8192)


async def test_warm_models_are_loaded_from_the_start(tmp_path: Path) -> None:
    """With their entry's window, to stay; and again when something unloaded them."""
    entry = {"options": {"num_ctx": 8192}}
    async with house(tmp_path, entry, warm=["gpu/m"]) as (p, gpu, _):
        await until(lambda: gpu.begun == ["m"])
        assert gpu.server.posts[0].json == {
            "model": "m",
            "keep_alive": -1,
            "options": {"num_ctx": 8192},
            "stream": False,
        }
        gpu.finish("m")
        await until(lambda: gpu.finished == ["m"])
        assert (await p.chat())[2][RESOLVED] == "gpu/m"
        gpu.loaded.clear()
        await p.app.generation.local.boxes.refresh(1.0)
        await until(lambda: gpu.begun == ["m", "m"])


async def test_a_warm_model_is_shown_though_no_chain_names_it(tmp_path: Path) -> None:
    """Whoever wants it loaded sees whether it is, also while it is not."""
    async with house(tmp_path, warm=["gpu/kept"]) as (p, gpu, _):
        await until(lambda: "kept" in gpu.loaded)
        gpu.slow.add("kept")
        for loaded in (True, False):
            await p.app.generation.local.boxes.refresh(1.0)
            targets = (await health_of(p))["targets"]
            assert {name: row["loaded"] for name, row in targets.items()} == {"m": False, "kept": loaded}
            gpu.loaded.clear()


async def test_a_bug_in_one_poll_is_not_the_last_poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported; what the box has loaded is asked for again."""
    monkeypatch.setattr(boxes, "POLL_BUSY", 0.01)
    polls: list[Any] = []
    refresh = boxes.Box.refresh

    async def broken_once(own: boxes.Box) -> None:
        polls.append(own)
        if len(polls) == 1:
            raise ZeroDivisionError
        await refresh(own)

    async with house(tmp_path) as (p, _gpu, _):
        monkeypatch.setattr(boxes.Box, "refresh", broken_once)
        own = p.app.generation.local.boxes.boxes["gpu"]
        own.wake()
        await until(lambda: "internal error" in p.log.getvalue())

        def asks_again() -> bool:
            own.wake()  # which it may not hear while it pauses
            return len(polls) > 1

        await until(asks_again)
        rows = [json.loads(line) for line in p.log.getvalue().splitlines() if '"event":"internal error"' in line]
        assert [row["where"] for row in rows] == ["models of gpu"]


@pytest.mark.parametrize("lie", [b"<html>", b'{"models": 3}', b'{"error": "x"}', b'{"models":[{"name":1}]}'])
async def test_a_server_that_does_not_tell_is_treated_as_any_other(lie: bytes, tmp_path: Path) -> None:
    """Asked a few times, named once, and no request is slower for it."""
    async with house(tmp_path) as (p, gpu, _):
        gpu.slow, gpu.ps = set(), lie
        for _ in range(5):
            await p.app.generation.local.boxes.refresh(1.0)
        assert p.log.getvalue().count("loaded models are not reported") == 1
        assert (await p.chat())[2][RESOLVED] == "gpu/m"
        assert [seen.path for seen in gpu.server.posts] == ["/api/chat"]


@pytest.mark.parametrize(
    ("odd", "window"),
    [
        ({"context_length": -1}, None),
        ({"context_length": "4096"}, None),
        ({"context_length": None, "size_vram": None}, None),
        ({"context_length": 4096.0, "size": 8e9}, 4096),
        ({"name": None, "context_length": 4096}, 4096),
        ({"name": "m\n", "context_length": 4096}, 4096),
    ],
)
async def test_odd_values_of_a_loaded_model(odd: dict[str, Any], window: int | None, tmp_path: Path) -> None:
    """A number that is none is not known, and a row that names no model says nothing of the others."""
    async with house(tmp_path) as (p, gpu, _):
        rows = [{"name": "m", "model": "m", "expires_at": 5, **odd}, {"name": 3}, "other", None]
        gpu.ps = json.dumps({"models": rows}).encode()
        gpu.slow.clear()
        for _ in range(4):
            await p.app.generation.local.boxes.refresh(1.0)
        assert (await p.chat())[2][RESOLVED] == "gpu/m"
        row = (await health_of(p))["targets"]["m"]
        assert (row["loaded"], row["status"], row["context_length"]) == (True, "healthy", window)
        assert [seen.path for seen in gpu.server.posts] == ["/api/chat"]
        assert "not told" not in p.log.getvalue()


async def test_a_restart_is_over_when_it_answers(tmp_path: Path) -> None:
    """The look at what it has loaded finds it, every few seconds; the next probe may be half a minute away."""
    async with box() as gpu:
        gpu.put("m")
        async with proxy(settings({"gpu": gpu.provider()}), tmp_path) as p:
            await until(lambda: gpu.ps_asked)
            await gpu.server.stop()
            assert [(await p.chat())[0] for _ in range(3)] == [503] * 3
            assert (await health_of(p))["status"] == "unhealthy"
            await p.app.generation.local.boxes.refresh(1.0)
            assert (await p.chat())[0] == 503
            await gpu.server.start()
            await p.app.generation.local.boxes.refresh(1.0)
            assert (await p.chat())[2][RESOLVED] == "gpu/m"
            assert (await health_of(p))["status"] == "healthy"


@pytest.mark.parametrize("never", [0, "0", "0s", 0.0])
async def test_what_is_unloaded_by_each_answer_is_not_loaded_before(never: Any, tmp_path: Path) -> None:
    """With that setting a load would be the opposite (server/routes.go GenerateHandler): it would unload the model."""
    async with house(tmp_path, {"cold": "next", "options": {"keep_alive": never}}) as (p, gpu, cloud):
        gpu.slow.clear()
        await until(lambda: gpu.ps_asked)
        for _ in range(3):
            gpu.loaded.clear()
            await p.app.generation.local.boxes.refresh(1.0)
            assert (await p.chat())[2][RESOLVED] == "gpu/m"
        assert {seen.path for seen in gpu.server.posts} == {"/api/chat"}
        assert (cloud.posts, "model load" in p.log.getvalue()) == ([], False)


async def test_none_of_it_for_other_providers(tmp_path: Path) -> None:
    """A provider that is not said to be local is not asked what it has loaded."""
    async with box() as gpu, proxy(settings({"gpu": gpu.provider(local=False)}), tmp_path) as p:
        assert (await p.chat())[0] == 200
        assert (gpu.ps_asked, [seen.path for seen in gpu.server.posts]) == (0, ["/api/chat"])
        assert not p.app.generation.local.boxes.boxes


async def test_a_reload_aborts_no_load(tmp_path: Path) -> None:
    """What is known of a server that is asked as before goes on, and so does what it loads."""
    async with house(tmp_path, {"load_timeout": 0.1}) as (p, gpu, cloud):
        await p.chat()
        changed = gpu.provider(timeouts={"idle": 3}, max_concurrent=9)
        config = settings({"gpu": changed, "cloud": openai(cloud.url)}, warm=["gpu/m"])
        p.write(config)
        await p.app.reload()
        gpu.finish("m")
        await until_served_by(p, "gpu/m")
        assert (gpu.begun, gpu.aborted) == (["m"], [])
        p.write(settings({"cloud": openai(cloud.url)}))
        await p.app.reload()
        assert (await p.chat())[2][RESOLVED] == "cloud/m"


async def test_a_model_that_only_embeds_is_loaded_by_embed(tmp_path: Path) -> None:
    """It refuses to be loaded by ``generate``."""
    seen_paths: list[str] = []

    async def script(connection: Any) -> None:
        while (seen := await connection.request()) is not None:
            seen_paths.append(seen.path)
            if seen.path == "/api/ps":
                loaded = "/api/embed" in seen_paths
                await connection.reply({"models": [{"name": "m:latest"}] if loaded else []})
            elif seen.path == "/api/generate":
                await connection.reply({"error": '"m" does not support generate'}, "400 Bad Request")
            elif seen.path == "/api/embed":
                await connection.reply({"model": "m", "embeddings": [[0.5]] * len(seen.json["input"])})
            else:
                await connection.upstream.probe(connection)

    async with upstream(script) as gpu:
        config = settings({"gpu": {"kind": "ollama", "base_url": gpu.url, "local": True}})
        async with proxy(config, tmp_path) as p:
            for _ in range(2):
                assert (await p.post("/v1/embeddings", {"input": "a"}))[0] == 200
        assert [path for path in seen_paths if path.startswith(("/api/g", "/api/e"))] == [
            "/api/generate",
            "/api/embed",
            "/api/embed",
            "/api/embed",
        ]


async def test_the_log_says_why_it_did_not_stay(tmp_path: Path) -> None:
    async with house(tmp_path, {"load_timeout": 0.1}) as (p, _gpu, _):
        await p.chat()
        p.app.logs.flush()
        rows = [json.loads(line) for line in p.log.getvalue().splitlines()]
        (fell,) = [row for row in rows if row["event"] == "fell back"]
        assert (fell["from_target"], fell["to_target"], fell["reason"]) == ("gpu/m", "cloud/m", "loading")
        assert [row["model"] for row in rows if row["event"] == "model load begun"] == ["m"]
        await p.chat(model="cloud/m")
        p.app.logs.flush()
        rows = [json.loads(line) for line in p.log.getvalue().splitlines()]
        passed = [row.get("passed") for row in rows if row["event"] == "request"]
        assert passed == [["gpu/m (loading: 0.1 s)"], None]


async def test_what_is_loaded_is_shown(tmp_path: Path) -> None:
    """Of each local target, also without failures, and of what else is loaded there; of no other provider."""
    async with house(tmp_path, {"options": {"num_ctx": 8192}, "load_timeout": 0.1}) as (p, gpu, _):
        row = (await health_of(p))["targets"]["m"]
        assert (row["loaded"], row["loading"], row["context_length"], row["size"]) == (False, False, None, None)
        await p.chat()
        assert (await health_of(p))["targets"]["m"]["loading"] is True
        gpu.finish("m")
        gpu.put("other", 2048)
        await until(lambda: gpu.finished == ["m"])
        await p.app.generation.local.boxes.refresh(1.0)
        health = await health_of(p)
        row, other = health["targets"]["m"], health["targets"]["other"]
        assert (row["loaded"], row["loading"], row["context_length"], row["size_vram"]) == (True, False, 8192, 8 * GIB)
        assert (health["status"], row["status"], other["context_length"]) == ("healthy", "healthy", 2048)
        assert "targets" not in (await p.get("/v1/health"))[1]["providers"]["cloud"]


async def test_what_stands_for_any_model_is_shown(tmp_path: Path) -> None:
    """The model that is chosen now, loaded or not, and no model that is named as the pattern is."""
    async with box("m") as own:
        async with proxy(settings({"gpu": own.provider()}, ["gpu/*"]), tmp_path) as p:
            rows = (await health_of(p))["targets"]
            assert (list(rows), rows["m"]["loaded"], rows["m"]["queue"]) == (["m"], False, 0)
            assert (await p.chat())[2][RESOLVED] == "gpu/m"
            rows = (await health_of(p))["targets"]
            assert (list(rows), rows["m"]["loaded"]) == (["m"], True)
            text = await (await p.client.get(p.url + "/metrics")).text()
            assert 'model="*"' not in text


async def test_an_open_entry_is_reported_as_its_model(tmp_path: Path) -> None:
    """What can be asked of an alias: to Ollama's clients, to Anthropic's, and to those who are paged."""

    async def usable(p: Proxy) -> str:
        text = await (await p.client.get(p.url + "/metrics")).text()
        return next(line for line in text.splitlines() if line.startswith("mana_llm_alias_usable_targets")).split()[1]

    async with box("m") as own:
        async with proxy(settings({"gpu": own.provider()}, ["gpu/*"]), tmp_path) as p:
            known = ModelInfo("m", capabilities=frozenset({"completion", "tools"}), context_length=8192)
            p.app.generation.catalog.learn("gpu", [known])
            _, shown, _ = await p.post("/api/show", {"model": "mana/test"})
            assert (shown["capabilities"], 8192 in shown["model_info"].values()) == (["completion", "tools"], True)
            _, tags = await p.get("/api/tags")
            assert tags["models"][0]["capabilities"] == ["completion", "tools"]
            async with p.client.get(p.url + "/v1/models", headers={"anthropic-version": "2023-06-01"}) as response:
                assert (await response.json())["data"][0]["max_input_tokens"] == 8192
            assert await usable(p) == "1"
            p.app.generation.registry.providers["gpu"]._target("m").open_until = math.inf
            assert (await usable(p), (await p.chat())[0]) == ("0", 503)
            p.app.generation.catalog.learn("gpu", [])
            assert (await usable(p), (await p.chat())[0]) == ("0", 503)


async def test_half_on_the_cpu_is_not_healthy(tmp_path: Path) -> None:
    """Named with both figures, once, and used when no other can serve."""
    async with house(tmp_path) as (p, gpu, cloud):
        gpu.slow, gpu.vram = set(), 0.25
        gpu.put("m")
        for _ in range(2):
            await p.app.generation.local.boxes.refresh(1.0)
        health = (await p.get("/v1/health"))[1]
        assert (health["status"], health["providers"]["gpu"]["status"]) == ("degraded", "degraded")
        assert health["providers"]["gpu"]["targets"]["m"]["status"] == "degraded_cpu"
        page = p.app.metrics.render()[0].decode()
        assert 'mana_llm_model_vram_ratio{model="m",provider="gpu"} 0.25' in page
        rows = [json.loads(line) for line in p.log.getvalue().splitlines()]
        (warning,) = [row for row in rows if row["event"] == "model is half on the CPU"]
        assert (warning["level"], warning["size"], warning["size_vram"]) == ("warning", 8 * GIB, 2 * GIB)
        assert (await p.chat())[2][RESOLVED] == "cloud/m"
        p.app.logs.flush()
        assert '"notes":["degraded_cpu: tried last"]' in p.log.getvalue()
        await cloud.stop()
        assert (await p.chat())[2][RESOLVED] == "gpu/m"


async def test_half_on_the_cpu_may_be_good_enough(tmp_path: Path) -> None:
    """The operator may say so."""
    async with box() as gpu, upstream(each(answers)) as cloud:
        gpu.vram = 0.25
        gpu.put("m")
        providers = {"gpu": gpu.provider(degraded_cpu="use"), "cloud": openai(cloud.url)}
        async with proxy(settings(providers), tmp_path) as p:
            assert (await p.chat())[2][RESOLVED] == "gpu/m"


async def test_a_list_that_hangs_makes_no_request_slower(tmp_path: Path) -> None:
    """Asked a few times, each with an end, and named once."""
    async with house(tmp_path) as (p, gpu, _):
        gpu.slow, gpu.hangs = set(), True
        for _ in range(4):
            await p.app.generation.local.boxes.refresh(0.05)
        began = asyncio.get_running_loop().time()
        assert (await p.chat())[2][RESOLVED] == "gpu/m"
        assert asyncio.get_running_loop().time() - began < 2.0
        assert p.log.getvalue().count("loaded models are not reported") == 1
        assert (await health_of(p))["targets"]["m"]["loaded"] is None


async def test_a_box_that_was_started_again_is_cold(tmp_path: Path) -> None:
    """While it is away its models are not known; once it is back they are loaded, not counted against it."""
    async with house(tmp_path, {"timeouts": {"first_byte": 0.5}}, health={"backoff": 0.1}) as (p, gpu, _):
        gpu.slow.clear()
        assert (await p.chat())[2][RESOLVED] == "gpu/m"
        await gpu.server.stop()
        await p.app.generation.local.boxes.refresh(1.0)
        assert (await p.chat())[2][RESOLVED] == "cloud/m"
        gpu.loaded.clear()
        gpu.slow = {"m"}
        await gpu.server.start()
        await p.app.generation.local.boxes.refresh(1.0)
        await asyncio.sleep(0.1)  # the backoff
        asking = asyncio.ensure_future(p.chat())
        await until(lambda: gpu.begun == ["m", "m"])
        await asyncio.sleep(0.6)  # longer than first_byte
        gpu.finish("m")
        assert (await asking)[2][RESOLVED] == "gpu/m"
        assert gpu.aborted == []
