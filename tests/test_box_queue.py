"""The queue in front of a box: one at a time, a bounded wait, then the next entry; and prompts that do not fit."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.provider import ModelInfo
from tests.ollama_box import Box, box
from tests.proxy import Proxy, openai, proxy, settings
from tests.upstreams import Answer, Connection, Seen, Upstream, answers, each, upstream
from tests.waiting import until

RESOLVED = "x-mana-llm-resolved"


@asynccontextmanager
async def house(
    tmp_path: Path,
    entry: dict[str, Any] | None = None,
    *,
    own: dict[str, Any] | None = None,
    alone: bool = False,
    answer: Answer = answers,
) -> AsyncIterator[tuple[Proxy, Box, Upstream]]:
    """A box that answers one at a time, and a cloud after it unless it is `alone`."""
    async with box() as gpu, upstream(each(answer)) as cloud:
        gpu.put("m")
        providers = {"gpu": gpu.provider(**{"parallel": 1, **(own or {})}), "cloud": openai(cloud.url)}
        chain = [{"target": "gpu/m", **(entry or {})}, *([] if alone else ["cloud/m"])]
        async with proxy(settings(providers, chain), tmp_path) as p:
            await until(lambda: gpu.ps_asked)
            yield p, gpu, cloud


async def target_of(p: Proxy) -> Any:
    return (await p.get("/v1/health"))[1]["providers"]["gpu"]["targets"]["m"]


def queue_of(p: Proxy) -> int:
    line = p.app.gateway.generation.local.queues["gpu"].line
    return len(line.of("m").waiting)


@pytest.mark.parametrize("stream", [False, True])
async def test_one_at_a_time_in_the_order_in_which_they_came(stream: bool, tmp_path: Path) -> None:
    """The box never has one waiting, and none of them goes to the cloud."""
    async with house(tmp_path, {"max_wait": 30}) as (p, gpu, cloud):
        gpu.answers.clear()
        asking = []
        for n in range(5):
            body = {"messages": [{"role": "user", "content": f"number {n}"}]}
            asking.append(asyncio.ensure_future(p.stream(**body) if stream else p.chat(**body)))
            # mypy knows no defaults of a lambda
            await until(lambda n=n: queue_of(p) + gpu.at_once == n + 1)  # type: ignore[misc]
        assert (gpu.at_once, (await target_of(p))["queue"]) == (1, 4)
        text = await (await p.client.get(p.url + "/metrics")).text()
        assert 'mana_llm_queue_length{model="m",provider="gpu"} 4' in text
        gpu.answers.set()
        results = await asyncio.gather(*asking)
        assert {headers[RESOLVED] for _, _, headers in results} == {"gpu/m"}
        assert [seen.json["messages"][0]["content"] for seen in gpu.chats] == [f"number {n}" for n in range(5)]
        assert (gpu.most, cloud.posts) == (1, [])
        target = await target_of(p)
        assert (target["queue"], target["expected_wait"]) == (0, 0)


async def test_no_wait_is_longer_than_it_may_be(tmp_path: Path) -> None:
    """Where nothing is known of the pace, it ends when it has lasted long enough."""
    async with house(tmp_path, {"max_wait": 0.1}) as (p, gpu, cloud):
        gpu.answers.clear()
        first = asyncio.ensure_future(p.chat())
        await until(lambda: gpu.at_once == 1)
        status, _, headers = await p.chat()
        assert (status, headers[RESOLVED], queue_of(p)) == (200, "cloud/m", 0)
        text = await (await p.client.get(p.url + "/metrics")).text()
        labels = 'from_model="gpu/m",reason="saturated",to_model="cloud/m"'
        assert f"mana_llm_fallback_total{{{labels}}} 1" in text
        assert (await p.get("/v1/health"))[1]["providers"]["gpu"]["status"] == "healthy"
        gpu.answers.set()
        assert (await first)[2][RESOLVED] == "gpu/m"
        assert len(cloud.posts) == 1


async def test_a_request_that_would_wait_too_long_moves_on_at_once(tmp_path: Path) -> None:
    """With the figure, once the pace is known."""
    async with house(tmp_path, {"max_wait": 0.5}) as (p, gpu, _):
        gpu.answers.clear()
        slow = asyncio.ensure_future(p.chat())
        await until(lambda: gpu.at_once == 1)
        await asyncio.sleep(0.7)  # so long takes an answer of this box
        gpu.answers.set()
        await slow
        gpu.answers.clear()
        first = asyncio.ensure_future(p.chat())
        await until(lambda: gpu.at_once == 1)
        assert (await p.get("/v1/explain"))[1]["chain"][0]["reason"] == "saturated"
        assert (await target_of(p))["expected_wait"] > 0.5
        status, _, headers = await p.chat()
        assert (status, headers[RESOLVED]) == (200, "cloud/m")
        attempts = (await p.get(f"/v1/requests/{headers['x-request-id']}"))[1]["attempts"]
        assert (attempts[0]["model"], attempts[0]["reason"]) == ("gpu/m", "saturated")
        assert attempts[0]["detail"].startswith("expected wait 0.")
        gpu.answers.set()
        await first
        assert (await p.chat())[2][RESOLVED] == "gpu/m"


async def test_the_last_entry_queues_rather_than_fail(tmp_path: Path) -> None:
    """However long it takes; the request of a client that leaves meanwhile is not sent at all."""
    async with house(tmp_path, {"max_wait": 0}, alone=True) as (p, gpu, _):
        gpu.answers.clear()
        first = asyncio.ensure_future(p.chat())
        await until(lambda: gpu.at_once == 1)
        leaving, staying = asyncio.ensure_future(p.chat()), asyncio.ensure_future(p.chat())
        await until(lambda: queue_of(p) == 2)
        leaving.cancel()
        await until(lambda: queue_of(p) == 1)
        gpu.answers.set()
        assert [(await each)[0] for each in (first, staying)] == [200, 200]
        assert len(gpu.chats) == 2


async def test_a_failure_makes_room_too(tmp_path: Path) -> None:
    """And a client that leaves in the middle of its answer."""
    async with house(tmp_path, {"max_wait": 30}) as (p, gpu, _):
        gpu.answers.clear()
        leaving = asyncio.ensure_future(p.stream())
        await until(lambda: gpu.at_once == 1)
        waiting = asyncio.ensure_future(p.chat())
        await until(lambda: queue_of(p) == 1)
        leaving.cancel()
        gpu.answers.set()
        assert (await waiting)[2][RESOLVED] == "gpu/m"


async def test_a_server_that_came_back_is_asked_gently(tmp_path: Path) -> None:
    """One at a time at first, although its slots are not limited."""
    async with house(tmp_path, {"max_wait": 30}, own={"parallel": None}) as (p, gpu, _):
        circuit = p.app.gateway.generation.registry.providers["gpu"].provider
        circuit.open_until = 0.0  # an outage whose rest is over
        assert (await p.chat())[2][RESOLVED] == "gpu/m"  # its trial
        results = await asyncio.gather(*(p.chat() for _ in range(6)))
        assert {headers[RESOLVED] for _, _, headers in results} == {"gpu/m"}
        assert gpu.most < 6
        assert (await asyncio.gather(*(p.chat() for _ in range(6))))[0][0] == 200


async def evicted(p: Proxy, gpu: Box) -> asyncio.Future[tuple[int, Any, Any]]:
    """One that was served, and one that waited meanwhile, whose model has been unloaded by the time it has its turn."""
    gpu.answers.clear()
    asking = []
    for number in range(2):
        asking.append(asyncio.ensure_future(p.chat()))
        await until(lambda: gpu.at_once + queue_of(p) == number + 1)  # noqa: B023  # it is waited for
    gpu.loaded.clear()  # another model took its room
    gpu.slow = {"m"}
    await p.app.gateway.generation.local.boxes.boxes["gpu"].refresh()
    gpu.answers.set()
    assert (await asking[0])[0] == 200
    await until(lambda: gpu.begun == ["m"])
    return asking[1]


async def test_a_model_that_is_unloaded_while_a_request_waits_is_loaded_first(tmp_path: Path) -> None:
    """It got that load within its own ``first_byte``, and failed with it; others wait behind it."""
    async with house(tmp_path, alone=True) as (p, gpu, _):
        asking = [await evicted(p, gpu), *(asyncio.ensure_future(p.chat()) for _ in range(2))]
        assert len(gpu.chats) == 1
        gpu.finish("m")
        assert [status for status, _, _ in await asyncio.gather(*asking)] == [200] * 3
        assert (len(gpu.begun), len(gpu.chats), gpu.most) == (1, 4, 1)


@pytest.mark.parametrize("fails", [False, True], ids=["the next answers", "the next fails"])
async def test_it_is_not_waited_for_where_the_next_one_answers_meanwhile(fails: bool, tmp_path: Path) -> None:
    """``cold: next``: as for a request that has just come, which returns if the next one fails."""

    async def answer(connection: Connection, seen: Seen) -> None:
        await (connection.reply(b"{}", "500 Internal Server Error") if fails else answers(connection, seen))

    async with house(tmp_path, {"cold": "next", "max_wait": 30}, answer=answer) as (p, gpu, cloud):
        second = await evicted(p, gpu)
        await until(lambda: cloud.posts)
        assert (queue_of(p), len(gpu.chats)) == (0, 1)
        gpu.finish("m")
        status, _, headers = await second
        assert (status, headers[RESOLVED]) == (200, "gpu/m" if fails else "cloud/m")


async def test_who_leaves_while_its_model_is_loaded_again_gives_up_its_turn(tmp_path: Path) -> None:
    async with house(tmp_path, alone=True) as (p, gpu, _):
        second = await evicted(p, gpu)
        third = asyncio.ensure_future(p.chat())
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        gpu.finish("m")
        assert (await third)[0] == 200
        assert gpu.begun == ["m"]


async def test_a_reload_is_no_outage(tmp_path: Path) -> None:
    """One that has come back long ago answers as many as before, also if its settings are other ones now."""
    async with house(tmp_path, own={"parallel": 2}) as (p, gpu, cloud):
        p.app.gateway.generation.registry.providers["gpu"].provider.open_until = 0.0  # an outage whose rest is over
        for _ in range(6):  # its trial, and enough for all slots
            assert (await p.chat())[2][RESOLVED] == "gpu/m"
        p.write(
            settings(
                {"gpu": gpu.provider(parallel=2, timeouts={"idle": 9}), "cloud": openai(cloud.url)},
                ["gpu/m", "cloud/m"],
            )
        )
        await p.app.reload()
        gpu.answers.clear()
        asking = [asyncio.ensure_future(p.chat()) for _ in range(2)]
        await until(lambda: gpu.at_once + queue_of(p) == 2)
        assert (gpu.at_once, queue_of(p)) == (2, 0)
        gpu.answers.set()
        assert [headers[RESOLVED] for _, _, headers in await asyncio.gather(*asking)] == ["gpu/m"] * 2


async def test_slots_that_nobody_said_are_learned(tmp_path: Path) -> None:
    """From who was answered beside whom: all that there are, and at most one waits inside the box."""
    async with house(tmp_path, {"max_wait": 30}, own={"parallel": None}) as (p, gpu, cloud):
        gpu.slots = 3
        gpu.ends.clear()
        assert (await target_of(p))["slots"] == 1
        asking = [asyncio.ensure_future(p.stream()) for _ in range(6)]
        await until(lambda: (gpu.at_once, len(gpu.chats), queue_of(p)) == (3, 4, 2))
        assert (await target_of(p))["slots"] == 3
        gpu.ends.set()
        assert {headers[RESOLVED] for _, _, headers in await asyncio.gather(*asking)} == {"gpu/m"}
        assert (gpu.most, gpu.waited, cloud.posts) == (3, 1, [])


async def test_a_request_that_waits_inside_the_box_is_taken_back(tmp_path: Path) -> None:
    """The box has one slot: what was sent to see whether it has another waits no longer than it would have here, and
    the next one is not sent."""
    async with house(tmp_path, {"max_wait": 0.2}, own={"parallel": None}) as (p, gpu, cloud):
        gpu.slots = 1
        gpu.ends.clear()
        first = asyncio.ensure_future(p.stream())
        await until(lambda: p.app.gateway.generation.local.queues["gpu"].line.of("m").slots.trial_timeout())
        for n in (1, 2):
            _, _, headers = await p.stream()
            assert (headers[RESOLVED], len(cloud.posts)) == ("cloud/m", n)
            row = (await p.get(f"/v1/requests/{headers['x-request-id']}"))[1]["attempts"][0]
            assert (row["model"], row["reason"]) == ("gpu/m", "saturated")
        assert ((await target_of(p))["slots"], gpu.waited, len(gpu.chats)) == (1, 1, 2)
        assert (await p.get("/v1/health"))[1]["providers"]["gpu"]["status"] == "healthy"
        gpu.ends.set()
        assert (await first)[2][RESOLVED] == "gpu/m"


async def test_a_whole_answer_is_taken_back_too(tmp_path: Path) -> None:
    """It may wait inside the box, which shows nothing of it. What it waited counts from when it came."""
    entry = {"max_wait": 0.3, "timeouts": {"first_byte": 30}}
    async with house(tmp_path, entry, own={"parallel": None}) as (p, gpu, cloud):
        gpu.slots = 1
        assert (await p.chat())[2][RESOLVED] == "gpu/m"  # so its time is known
        queue = p.app.gateway.generation.local.queues["gpu"]
        line = queue.line.of("m")
        line.pace.answer = 0.01  # however slow this machine is
        gpu.answers.clear()
        first = asyncio.ensure_future(p.chat())
        await until(lambda: gpu.at_once == 1)
        clock, looks = queue.clock, itertools.count()
        queue.clock = lambda: clock() + 0.004 * next(looks)  # some work lies between two looks
        _, _, headers = await p.chat()
        row = (await p.get(f"/v1/requests/{headers['x-request-id']}"))[1]["attempts"][0]
        assert (headers[RESOLVED], row["reason"], row["detail"]) == ("cloud/m", "saturated", "waited 0.3 s")
        assert (first.done(), len(cloud.posts), line.trial) == (False, 1, None)
        assert not line.slots.may_try(False, asyncio.get_running_loop().time())  # it was one, and rests
        gpu.answers.set()
        assert (await first)[2][RESOLVED] == "gpu/m"


async def test_a_llama_server_says_its_slots(tmp_path: Path) -> None:
    """And one that says nothing of the kind has no limit."""
    for props, slots in (({"total_slots": 2}, 2), ({"total_slots": "2"}, None), ([], None)):
        held = asyncio.Event()

        async def script(connection: Connection, props: Any = props, held: asyncio.Event = held) -> None:
            while (seen := await connection.request()) is not None:
                if seen.path == "/props":
                    await connection.reply(json.dumps(props).encode())
                elif seen.method == "GET":
                    await connection.upstream.probe(connection)
                else:
                    await _held(held, connection, seen)

        async with upstream(script) as own:
            async with proxy(settings({"gpu": openai(own.url, local=True)}), tmp_path) as p:
                assert (await target_of(p))["slots"] == slots
                asking = [asyncio.ensure_future(p.chat()) for _ in range(4)]
                # mypy knows no defaults of a lambda
                await until(lambda own=own, slots=slots: len(own.posts) == (slots or 4))  # type: ignore[misc]
                # mypy knows no defaults of a lambda
                await until(lambda p=p, slots=slots: queue_of(p) == 4 - (slots or 4))  # type: ignore[misc]
                held.set()
                assert [status for status, _, _ in await asyncio.gather(*asking)] == [200] * 4


async def test_a_llama_server_that_came_back_is_asked_again(tmp_path: Path) -> None:
    """It may have been started with other settings."""
    slots = 2

    async def script(connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if seen.path == "/props":
                await connection.reply({"total_slots": slots})
            elif seen.method == "GET":
                await connection.upstream.probe(connection)
            else:
                await answers(connection, seen)

    async with upstream(script) as own:
        health = {"failure_threshold": 1, "backoff": 0.05}
        async with proxy(settings({"gpu": openai(own.url, local=True)}, health=health), tmp_path) as p:
            for _ in range(3):  # it is hardly asked any more
                await p.app.generation.local.boxes.refresh(1.0)
            assert (await target_of(p))["slots"] == 2
            await own.stop()
            assert (await p.chat())[0] == 503
            slots = 1
            await own.start()
            async with asyncio.timeout(10):
                while (await p.chat())[0] != 200 or (await target_of(p))["slots"] != 1:
                    await asyncio.sleep(0.01)


async def test_what_does_not_fit_is_not_sent(tmp_path: Path) -> None:
    """If it cannot fit, by what was learned of the model's tokens; with no other entry it is the caller's mistake."""
    async with house(tmp_path) as (p, gpu, cloud):
        gpu.bytes_per_token = 4
        for _ in range(3):
            await p.chat(messages=[{"role": "user", "content": "word " * 200}])
        sent = len(gpu.chats)
        long = [{"role": "user", "content": "word " * 8000}]
        status, _, headers = await p.chat(messages=long)
        assert (status, headers[RESOLVED], len(gpu.chats), len(cloud.posts)) == (200, "cloud/m", sent, 1)
        text = await (await p.client.get(p.url + "/metrics")).text()
        assert 'mana_llm_fallback_total{from_model="gpu/m",reason="too_long",to_model="cloud/m"} 1' in text
        status, body, _ = await p.chat(model="gpu/m", messages=long)
        error = body["error"]
        assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
        assert "its window has 4096" in error["message"]
        assert len(gpu.chats) == sent
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 60_000}}
        await p.chat(model="gpu/m", messages=[{"role": "user", "content": [picture]}])
        assert len(gpu.chats) == sent + 1  # a picture's tokens have nothing to do with its bytes


async def test_pictures_that_do_not_fit_are_not_sent(tmp_path: Path) -> None:
    """By what the model has taken for others; nothing is known of small ones, and of the first ones of all."""

    def pictures(number: int, size: int) -> list[dict[str, Any]]:
        url = "data:image/png;base64," + "A" * size
        return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}] * number}]

    async with house(tmp_path, {"max_wait": 30}) as (p, gpu, _):
        gpu.bytes_per_token, gpu.picture_tokens = 4, 1500

        async def served_by(number: int, size: int) -> str:
            return str((await p.chat(messages=pictures(number, size)))[2][RESOLVED])

        assert await served_by(20, 40_000) == "gpu/m"
        for _ in range(3):
            await p.chat(messages=[{"role": "user", "content": "word " * 200}])
        assert [await served_by(1, 40_000) for _ in range(3)] == ["gpu/m"] * 3
        assert [await served_by(*each) for each in ((2, 40_000), (20, 400))] == ["gpu/m"] * 2
        assert [await served_by(*each) for each in ((20, 400), (2, 40_000))] == ["cloud/m", "gpu/m"]  # all are alike


async def test_a_window_that_is_larger_than_the_models_is_not_believed(tmp_path: Path) -> None:
    """What the model cannot read is not sent, whatever the configuration says."""
    chain = {"options": {"num_ctx": 10**6}}
    async with house(tmp_path, chain) as (p, gpu, cloud):
        gpu.put("m", 4096)
        p.app.generation.catalog.learn("gpu", (ModelInfo("m", context_length=4096),))
        long = [{"role": "user", "content": "word " * 40_000}]
        _, _, headers = await p.chat(messages=long)
        assert (headers[RESOLVED], gpu.chats, len(cloud.posts)) == ("cloud/m", [], 1)


async def test_a_local_server_of_another_kind_has_a_queue_too(tmp_path: Path) -> None:
    """As llama-server has, which loads nothing on demand."""
    held = asyncio.Event()
    async with upstream(each(partial(_held, held))) as own, upstream(each(answers)) as cloud:
        providers = {"box": openai(own.url, local=True, parallel=1), "cloud": openai(cloud.url)}
        chain = [{"target": "box/m", "max_wait": 0.05}, "cloud/m"]
        async with proxy(settings(providers, chain), tmp_path) as p:
            first = asyncio.ensure_future(p.chat())
            await until(lambda: own.posts)
            assert (await p.chat())[2][RESOLVED] == "cloud/m"
            row = (await p.get("/v1/health"))[1]["providers"]["box"]["targets"]["m"]
            assert (row["queue"], row["status"]) == (0, "healthy")
            held.set()
            assert (await first)[2][RESOLVED] == "box/m"


async def _held(held: asyncio.Event, connection: Connection, seen: Seen) -> None:
    await held.wait()
    await answers(connection, seen)
