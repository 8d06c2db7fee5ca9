"""What ``/v1/models`` and ``/v1/health`` say of providers as they come and go."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from tests.proxy import HI, everything, openai, proxy, settings
from tests.upstreams import answers, each, endless, upstream


async def test_what_is_down_is_listed_no_more(tmp_path: Path) -> None:
    """An alias stays, whoever serves it. Of what is down it is told since when, why, and until when it is skipped."""
    async with upstream(each(answers), ["m"]) as gpu, upstream(each(answers), ["n"]) as cloud:
        config = settings({"gpu": openai(gpu.url), "cloud": openai(cloud.url)}, health={"failure_threshold": 1})
        async with proxy(config, tmp_path) as p:
            _, models = await p.get("/v1/models")
            assert [row["id"] for row in models["data"]] == ["mana/test", "gpu/m", "cloud/n"]
            await gpu.stop()
            assert (await p.chat())[0] == 200
            _, models = await p.get("/v1/models")
            assert [row["id"] for row in models["data"]] == ["mana/test", "cloud/n"]
            code, health = await p.get("/v1/health")
            row = health["providers"]["gpu"]
            assert (code, health["status"]) == (200, "degraded")
            assert (row["status"], row["last_error"], row["consecutive_failures"]) == ("unhealthy", "connect_error", 1)
            skipped_for = datetime.fromisoformat(row["unhealthy_until"]) - datetime.fromisoformat(row["last_check"])
            assert abs(skipped_for - timedelta(seconds=60)) <= timedelta(seconds=1)  # each is rounded by itself
            await cloud.stop()
            assert (await p.chat())[0] == 503
            code, health = await p.get("/v1/health")
            assert (code, health["status"]) == (503, "unhealthy")


async def test_a_model_is_found_by_every_name_that_a_request_may_use(tmp_path: Path) -> None:
    """What its provider's list lacks is not; without a list it may be there. Nobody is asked for any of it."""
    async with upstream(each(answers), ["m"]) as gpu, upstream(each(answers)) as silent:
        silent.probe_status = "404 Not Found"
        keyless = openai(gpu.url, api_key="${NOSUCH}")
        config = settings({"gpu": openai(gpu.url), "silent": openai(silent.url), "keyless": keyless}, ["gpu/m"])
        async with proxy({**config, "default_provider": "gpu"}, tmp_path) as p:
            asked = len(gpu.seen) + len(silent.seen)
            found = {"mana/test": "manallm", "gpu/m": "gpu", "m": "gpu", "silent/any/thing": "silent"}
            for name, owner in found.items():
                code, row = await p.get(f"/v1/models/{name}")
                assert (code, row["id"], row["owned_by"]) == (200, name, owner)
            for name in ("mana/nosuch", "gpu/other", "other", "keyless/m", "nosuch/m"):
                code, body = await p.get(f"/v1/models/{name}")
                assert (code, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model"), name
            _, health = await p.get("/v1/health")
            row = health["providers"]["keyless"]
            assert (row["status"], row["reason"]) == ("unconfigured", "NOSUCH is not set")
            for path in ("/v1/models", "/v1/aliases", "/v1/health", "/health", "/readyz"):
                assert (await p.get(path))[0] == 200
            assert len(gpu.seen) + len(silent.seen) == asked


async def test_a_request_in_flight_is_counted_until_it_ends(tmp_path: Path) -> None:
    """At its provider, in /v1/health."""
    async with upstream(each(endless)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        async with p.client.post(f"{p.url}/v1/chat/completions", json={**HI, "stream": True}) as response:
            await response.content.readany()
            assert (await p.get("/v1/health"))[1]["providers"]["gpu"]["in_flight"] == 1
            gpu.go.set()
            assert (await everything(response)).endswith(b"[DONE]\n\n")
        assert (await p.get("/v1/health"))[1]["providers"]["gpu"]["in_flight"] == 0
