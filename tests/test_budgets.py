"""The spend brake: what a key or an alias may spend in a day or a month, and what happens after that."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from manallm_proxy.config.load import load
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.budgets import Amount
from manallm_proxy.process import spend_file
from tests.cases import every
from tests.figures import value
from tests.native_servers import speaks_messages, speaks_responses
from tests.proxy import HI, POST, Proxy, openai, process, proxy, settings, written
from tests.supervised import health, pids
from tests.upstreams import DONE, USAGE, Connection, Seen, answers, chunk, completion, each, endless, status, upstream
from tests.waiting import until

PRICE = {"input": 100_000, "output": 100_000}
"""Ten cents a token: an answer of `upstreams.answers` has 5, so it costs half a dollar."""
DEAR = {"target": "cloud/m", "price": PRICE}
SECRET = "k" * 40


def entry(**more: Any) -> dict[str, Any]:
    return {"name": "alice", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), **more}


def with_budget(config: dict[str, Any], **budget: Any) -> dict[str, Any]:
    """Of the alias."""
    config["aliases"]["mana/test"] |= budget
    return config


async def ask(p: Proxy, **body: Any) -> tuple[int, Any, dict[str, str]]:
    """A chat of alice's with an empty prompt, whose estimate is cheap: some 15 tokens."""
    headers = {"Authorization": f"Bearer {SECRET}"}
    return await p.post("/v1/chat/completions", {"messages": [], **body}, headers=headers)


def spent(p: Proxy, account: str) -> float:
    """USD."""
    return sum(usd for name, _, usd, _ in p.app.gateway.generation.ledger.rows() if name == account)


async def test_an_alias_at_its_budget_stays_local(tmp_path: Path) -> None:
    """The reason is in the attempt log; a local target that fails does not open the purse."""
    async with upstream(each(answers)) as cloud, upstream(each(answers)) as gpu:
        config = settings({"cloud": openai(cloud.url), "box": openai(gpu.url, local=True)}, [DEAR, "box/m"])
        async with proxy(with_budget(config, budget={"day": "4 USD"}), tmp_path) as p:
            served = [(await ask(p))[2]["x-mana-llm-resolved"] for _ in range(9)]
            assert served[0] == "cloud/m" and served[-1] == "box/m"
            assert served == sorted(served, reverse=True), "once it is used up it stays so"
            assert spent(p, "alias mana/test") == pytest.approx(0.5 * served.count("cloud/m"))
            assert spent(p, "alias mana/test") <= 4
            _, rows = await p.get("/v1/requests")
            _, row = await p.get(f"/v1/requests/{rows['requests'][0]['id']}")
            assert [(a["model"], a.get("reason")) for a in row["attempts"]] == [("cloud/m", "budget"), ("box/m", None)]
            assert "alias mana/test has spent" in row["attempts"][0]["detail"]
            _, explained = await p.get("/v1/explain?model=mana/test")
            assert (explained["chain"][0]["reason"], explained["serves"]) == ("budget", "box/m")
            await gpu.stop()
            code, body, _ = await ask(p)
            assert (code, body["error"]["code"]) == (503, "no_healthy_provider")
            assert [a["reason"] for a in body["error"]["attempts"]] == ["budget", "connect_error"]
            _, _, headers = [await ask(p) for _ in range(2)][-1]
            assert (headers["x-should-retry"], headers["retry-after"]) == ("false", "60"), "the budget is no hope"
            async with p.client.get(f"{p.url}/metrics") as response:
                assert 'from_model="cloud/m",reason="budget",to_model="box/m"' in await response.text()
            assert (await ask(p, model="cloud/m"))[0] == 200, "an alias's budget is not that of its targets"


@every(
    [
        (Amount(5, "USD"), "5 USD"),
        (Amount(0.00003, "USD"), "0.00003 USD"),
        (Amount(1234.5, "USD"), "1,234.5 USD"),
        (Amount(12_345, "tokens"), "12,345 tokens"),
        (Amount(1e12, "tokens"), "1,000,000,000,000 tokens"),
    ]
)
def test_amounts_are_written_out(amount: Amount, wanted: str) -> None:
    """9.999e+04 of 100,000 tokens is a riddle."""
    assert str(amount) == wanted


async def test_what_was_spent_is_written_out(tmp_path: Path) -> None:
    """Tokens to the last one, money to the millionth."""
    async with upstream(each(answers)) as cloud:
        for budget, wanted in (("100000 tokens", "99,987 of 100,000 tokens"), ("0.05 USD", "0.049999 of 0.05 USD")):
            config = with_budget(settings({"cloud": openai(cloud.url)}, [DEAR]), budget={"day": budget})
            async with proxy(config, tmp_path) as p:
                ledger = p.app.gateway.generation.ledger
                ledger.merge([("alias mana/test", ledger.day, 0.0499991, 99_987)])
                _, answer, _ = await p.post("/v1/chat/completions", {**HI, "max_tokens": 100_000})
                assert f"has spent {wanted} a day" in answer["error"]["message"]


@pytest.mark.parametrize("policy", ["local", "refuse"])
async def test_where_nothing_is_free_it_is_refused(policy: str, tmp_path: Path) -> None:
    """429 `budget_exceeded`, which no SDK should try again, at every door and before any provider is asked."""
    async with upstream(each(answers)) as cloud:
        config = settings({"cloud": openai(cloud.url)}, [DEAR])
        async with proxy(with_budget(config, budget={"month": "1 USD"}, on_budget=policy), tmp_path) as p:
            p.app.gateway.generation.ledger.merge([("alias mana/test", p.app.gateway.generation.ledger.day, 1.0, 10)])
            for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"):
                body = {"model": "mana/test", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
                body = {"model": "mana/test", "input": "a"} if path == "/v1/responses" else body
                code, answer, headers = await p.post(path, body)
                assert (code, headers["x-should-retry"], len(cloud.posts)) == (429, "false", 0), answer
                assert "alias mana/test has spent 1 of 1 USD a month" in str(answer)
            code, answer, headers = await ask(p)
            assert (answer["error"]["code"], headers["retry-after"]) == ("budget_exceeded", "60")


async def test_a_key_that_refuses_lets_through_what_is_free(tmp_path: Path) -> None:
    """`refuse` is about money that would be spent: a chain that costs nothing is none of its business."""
    async with upstream(each(answers)) as cloud, upstream(each(answers)) as gpu:
        config = settings({"cloud": openai(cloud.url), "box": openai(gpu.url, local=True)}, [DEAR])
        config["aliases"]["mana/home"] = {"chain": ["box/m"]}
        config["auth"] = {"keys": [entry(budget={"day": "1 USD"}, on_budget="refuse")]}
        async with proxy(config, tmp_path) as p:
            p.app.gateway.generation.ledger.merge([("key alice", p.app.gateway.generation.ledger.day, 1.0, 10)])
            assert [(await ask(p, model=m))[0] for m in ("mana/test", "cloud/m", "mana/home")] == [429, 429, 200]


async def test_tokens_are_a_budget_too(tmp_path: Path) -> None:
    """Those of local targets count; at its end they alone serve, or with `refuse` nobody does."""
    by_default: dict[str, str] = {}
    async with upstream(each(answers)) as cloud, upstream(each(answers)) as gpu:
        for policy, expected in ((by_default, [200, 200]), ({"on_budget": "refuse"}, [429, 429])):
            config = settings({"cloud": openai(cloud.url), "box": openai(gpu.url, local=True)}, ["cloud/m", "box/m"])
            config["auth"] = {"keys": [entry(budget={"day": "100 tokens"}, **policy)]}
            async with proxy(config, tmp_path) as p:
                code, _, headers = await ask(p, max_tokens=50)
                assert (code, headers["x-mana-llm-resolved"]) == (200, "cloud/m")
                assert (await ask(p, model="box/m"))[0] == 200
                assert [row[3] for row in p.app.gateway.generation.ledger.rows()] == [10]
                assert [(await ask(p, max_tokens=90, model=m))[0] for m in ("mana/test", "box/m")] == expected


async def test_what_asks_no_model_is_free(tmp_path: Path) -> None:
    """Ollama's clients load a model by a prompt without words: also with a key that may not spend a token any more."""
    async with upstream(each(answers)) as cloud:
        config = settings({"cloud": openai(cloud.url)}, [DEAR])
        for limit in ({"tokens_per_minute": 1}, {"budget": {"day": "1 tokens"}, "on_budget": "refuse"}):
            config["auth"] = {"keys": [entry(**limit)]}
            async with proxy(config, tmp_path) as p:
                assert (await ask(p))[0] == 429
                headers = {"Authorization": f"Bearer {SECRET}"}
                for path, body in (("/api/generate", {"prompt": ""}), ("/api/chat", {"messages": []})):
                    code, told, _ = await p.post(path, {"model": "mana/test", "stream": False, **body}, headers=headers)
                    assert (code, told["done_reason"]) == (200, "load")
        assert cloud.posts == []


async def test_many_at_once_spend_no_more_than_one_after_the_other(tmp_path: Path) -> None:
    """What a request may cost is reserved before its call: `max_tokens`, and an estimate of its prompt."""
    async with upstream(each(endless)) as cloud:
        config = settings({"cloud": openai(cloud.url)}, [DEAR])
        async with proxy(with_budget(config, budget={"day": "25 USD"}), tmp_path) as p:
            asking = [asyncio.ensure_future(p.stream(max_tokens=100)) for _ in range(5)]
            await until(lambda: sum(each.done() for each in asking) == 3)
            assert [each.result()[0] for each in asking if each.done()] == [429] * 3
            cloud.go.set()
            codes = [code for code, _, _ in await asyncio.gather(*asking)]
            assert sorted(codes) == [200, 200, 429, 429, 429]
            assert p.app.gateway.generation.ledger._reserved == {}


Played = Callable[[Connection, Seen], Awaitable[None]]


async def breaks(connection: Connection, seen: Seen) -> None:
    """After the commit, with its usage told."""
    await connection.head()
    await connection.chunk(chunk("Hel") + USAGE)
    connection.reset()


async def fails(connection: Connection, seen: Seen) -> None:
    """Before the commit, with its usage reported: it will be on the bill."""
    await connection.head()
    await connection.chunk(USAGE + b'data: {"error":{"message":"no","code":503}}\n\n')
    await connection.end()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(answers, 0.5), (breaks, 0.5), (fails, 0.5), (status("503 No"), 0.0), (status("400 No"), 0.0)],
    ids=["well", "broken", "failed", "refused", "mistake"],
)  # fmt: skip
async def test_what_is_on_the_bill_is_charged(answer: Played, expected: float, tmp_path: Path) -> None:
    """Of a stream: its usage, wherever it ends; nothing is left reserved."""
    async with upstream(each(answer)) as cloud:
        config = settings({"cloud": openai(cloud.url)}, [DEAR])
        async with proxy(with_budget(config, budget={"day": "1000 USD"}), tmp_path) as p:
            await p.stream(max_tokens=100)
            assert spent(p, "alias mana/test") == pytest.approx(expected)
            assert p.app.gateway.generation.ledger._reserved == {}


async def test_a_chain_that_names_a_target_twice_pays_once(tmp_path: Path) -> None:
    """Such as with a short timeout first, and a long one where nobody else answers."""
    bearer = {"Authorization": f"Bearer {SECRET}"}
    async with upstream(each(answers)) as cloud:
        config = settings({"cloud": openai(cloud.url)}, [{**DEAR, "timeouts": {"first_byte": 4}}, DEAR])
        config["auth"] = {"keys": [entry(tokens_per_minute=100_000)]}
        async with proxy(with_budget(config, budget={"day": "1000 USD"}), tmp_path) as p:
            for answer, stream in enumerate((False, True), 1):
                body = {"messages": [{"role": "user", "content": "x" * 400}], "stream": stream, "max_tokens": 9}
                async with p.client.post(f"{p.url}/v1/chat/completions", json=body, headers=bearer) as response:
                    assert response.status == 200
                    await response.read()
                await until(lambda: not p.app.gateway.pipeline.exchanges)
                assert spent(p, "alias mana/test") == pytest.approx(answer * 0.5)
            (caller,) = p.app.gateway.generation.keyring
            assert caller.tokens is not None
            assert caller.tokens.remaining(p.app.gateway.generation.registry.clock()) == 100_000 - 10


async def test_what_nobody_counted_is_estimated(tmp_path: Path) -> None:
    """By the bytes of the prompt and of the answer: of a client that left, and of a provider that tells no usage."""

    async def untold(connection: Connection, seen: Seen) -> None:
        if seen.json.get("stream"):
            await endless(connection, seen)
        else:
            await connection.reply({k: v for k, v in completion("word " * 400).items() if k != "usage"})

    async with upstream(each(untold)) as cloud:
        config = settings({"cloud": openai(cloud.url)}, [DEAR])
        async with proxy(with_budget(config, budget={"day": "1000 USD"}), tmp_path) as p:
            payload = {"messages": [], "stream": True, "max_tokens": 9}
            async with p.client.post(p.url + "/v1/chat/completions", json=payload) as response:
                await response.content.readany()
            await until(lambda: spent(p, "alias mana/test") > 0)
            left = spent(p, "alias mana/test")
            assert 0.5 < left < 2.5
            assert (await ask(p))[0] == 200
            await until(lambda: 45 < spent(p, "alias mana/test") - left < 65)
            assert p.app.gateway.generation.ledger._reserved == {}


async def test_answers_that_nobody_bounds_are_expected_to_be_as_long_as_the_others(tmp_path: Path) -> None:
    """So that those which begin at once do not pass the budget by far; but what is estimated refuses nobody."""

    async def long(connection: Connection, seen: Seen) -> None:
        if seen.json.get("stream"):
            await endless(connection, seen)
        else:
            told = {"prompt_tokens": 3, "completion_tokens": 100, "total_tokens": 103}
            await connection.reply({**completion(), "usage": told})

    async with upstream(each(long)) as cloud:
        config = with_budget(settings({"cloud": openai(cloud.url)}, [DEAR]), budget={"day": "30 USD"})
        config["auth"] = {"keys": [entry(tokens_per_minute=300)]}
        async with proxy(config, tmp_path) as p:
            assert (await ask(p))[0] == 200
            assert spent(p, "alias mana/test") == pytest.approx(10.3)
            bearer = {"Authorization": f"Bearer {SECRET}"}

            async def stream() -> tuple[int, str]:
                payload = {"messages": [], "stream": True}
                async with p.client.post(f"{p.url}/v1/chat/completions", json=payload, headers=bearer) as response:
                    await response.read()
                    return response.status, response.headers["x-ratelimit-remaining-tokens"]

            asking = [asyncio.ensure_future(stream()) for _ in range(5)]
            await until(lambda: sum(each.done() for each in asking) == 3)
            await until(lambda: len(cloud.posts) == 3)  # the second of two has eight of its eleven dollars
            cloud.go.set()
            found = await asyncio.gather(*asking)
            assert sorted(code for code, _ in found) == [200, 200, 429, 429, 429]
            assert all(int(left) < 100 for code, left in found if code == 200), "of 300, 103 and twice 100 are taken"
            assert p.app.gateway.generation.ledger._reserved == {}


async def test_who_is_left_is_paid_for_what_it_has_read(tmp_path: Path) -> None:
    """The loser of a hedge, and whoever was asked when the client left; not who could not be reached."""
    prompt = 0.9  # nine tokens, by the bytes of the request

    async def mute(connection: Connection, seen: Seen) -> None:
        await connection.gone()

    async with upstream(each(mute)) as slow, upstream(each(answers)) as cloud:
        config = settings({"slow": openai(slow.url), "cloud": openai(cloud.url), "gone": openai("http://127.0.0.1:9")})
        others = [{"target": f"{name}/m", "price": PRICE} for name in ("slow", "gone")]
        config["aliases"] = {
            "mana/test": {
                "chain": [{"any": [others[0], DEAR], "weights": [1000, 1], "strategy": "weighted", "hedge": "10ms"}]
            },
            "mana/slow": {"chain": [others[1], others[0]]},
        }
        config["auth"] = {"keys": [entry(budget={"day": "1000 USD"}, tokens_per_minute=1000)]}
        async with proxy(config, tmp_path) as p:
            for n in (1, 2):
                code, _, headers = await ask(p, stream=False)
                assert (code, headers["x-mana-llm-resolved"], len(slow.posts)) == (200, "cloud/m", n)
                assert spent(p, "key alice") == pytest.approx(n * (0.5 + prompt))
            payload = {"model": "mana/slow", "messages": []}
            before = spent(p, "key alice")
            bearer = {"Authorization": f"Bearer {SECRET}"}
            asking = asyncio.ensure_future(p.client.post(f"{p.url}/v1/chat/completions", json=payload, headers=bearer))
            await until(lambda: len(slow.posts) == 3)
            asking.cancel()
            await until(lambda: spent(p, "key alice") > before)
            assert spent(p, "key alice") - before == pytest.approx(prompt, abs=0.3)
            await until(lambda: p.app.gateway.generation.ledger._reserved == {})


async def test_who_leaves_a_shared_answer_leaves_nothing_reserved(tmp_path: Path) -> None:
    """The answer goes on for the others, at targets that were not asked when its payer left."""
    go = asyncio.Event()

    async def late(connection: Connection, seen: Seen) -> None:
        await go.wait()
        await connection.reply({}, "503 No")

    async with upstream(each(late)) as first, upstream(each(answers)) as cloud:
        chain = [{"target": "first/m", "price": PRICE}, DEAR]
        config = settings({"first": openai(first.url), "cloud": openai(cloud.url)}, chain)
        config["aliases"]["mana/test"]["cache"] = {"ttl": "1h"}
        async with proxy(with_budget(config, budget={"day": "1000 USD"}), tmp_path) as p:
            leader, follower = (asyncio.ensure_future(ask(p, seed=1)) for _ in range(2))
            flights = p.app.gateway.generation.answers.flights
            await until(lambda: len(flights) == 1 and len(p.app.gateway.pipeline.exchanges) == 2)
            leader.cancel()
            await until(lambda: len(p.app.gateway.pipeline.exchanges) == 1)
            go.set()
            code, _, headers = await follower
            assert (code, headers["x-mana-llm-resolved"]) == (200, "cloud/m")
            assert p.app.gateway.generation.ledger._reserved == {}
            assert spent(p, "alias mana/test") == pytest.approx(0.5)


@pytest.mark.parametrize("both_leave", [False, True])
async def test_each_token_of_a_shared_answer_is_paid_once(both_leave: bool, tmp_path: Path) -> None:
    """By who began it, once it is over, though that client has left in the middle; also where the last leaves, too."""
    go = asyncio.Event()

    async def slow(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk("one two three"))
        await go.wait()
        await connection.chunk(chunk(finish="stop") + USAGE + DONE)
        await connection.end()

    async with upstream(each(slow)) as cloud:
        config = settings({"cloud": openai(cloud.url)}, [DEAR])
        config["aliases"]["mana/test"]["cache"] = {"ttl": "1h"}
        config["auth"] = {"keys": [entry(tokens_per_minute=1000)]}
        async with proxy(with_budget(config, budget={"day": "1000 USD"}), tmp_path) as p:
            payload = {"model": "mana/test", "messages": [], "stream": True, "max_tokens": 100}
            path, bearer = f"{p.url}/v1/chat/completions", {"Authorization": f"Bearer {SECRET}"}
            both = [await p.client.post(path, json=payload, headers=bearer) for _ in range(2)]
            for response in both:
                assert b"one" in await response.content.readany()
            exchanges, ledger = p.app.gateway.pipeline.exchanges, p.app.gateway.generation.ledger
            both[0].close()
            await until(lambda: len(exchanges) == 1)
            assert spent(p, "alias mana/test") == 0 and ledger._reserved
            if both_leave:
                both[1].close()
                await until(lambda: not exchanges and not ledger._reserved)
                assert 0 < spent(p, "alias mana/test") < 5
                return
            go.set()
            assert (await both[1].read()).endswith(DONE)
            await until(lambda: not exchanges and not ledger._reserved)
            assert spent(p, "alias mana/test") == pytest.approx(0.5)
            told = p.app.metrics.render()[0].decode()
            for kind, number in (("prompt", 3), ("completion", 2)):
                assert value(told, "mana_llm_tokens_total", provider="cloud", model="m", type=kind) == number
            _, _, headers = await ask(p, seed=1)
            assert int(headers["x-ratelimit-remaining-tokens"]) < 1000 - 5


async def test_who_leaves_while_a_shared_answer_waits_for_it_pays_what_is_on_the_bill(tmp_path: Path) -> None:
    """The provider has sent all, and said what it costs, before this client has read much of it."""

    async def long(connection: Connection, seen: Seen) -> None:
        await connection.head()
        for _ in range(30):
            await connection.chunk(chunk("x" * 100_000))
        await connection.chunk(chunk(finish="stop") + USAGE + DONE)
        await connection.end()

    async with upstream(each(long)) as cloud:
        config = settings({"cloud": openai(cloud.url)}, [DEAR])
        config["aliases"]["mana/test"]["cache"] = {"ttl": "1h"}
        async with proxy(with_budget(config, budget={"day": "100000 USD"}), tmp_path) as p:
            exchanges, flights = p.app.gateway.pipeline.exchanges, p.app.gateway.generation.answers.flights
            with socket.socket() as slow:
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                slow.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(slow, ("127.0.0.1", p.port))
                body = b'{"messages":[],"stream":true,"max_tokens":100}'
                await loop.sock_sendall(slow, POST.replace(b"15", b"%d" % len(body)).partition(b"{")[0] + body)
                await until(lambda: len(cloud.posts) == 1 and exchanges and not flights)
            await until(lambda: spent(p, "alias mana/test") > 0)
            assert spent(p, "alias mana/test") == pytest.approx(0.5)
            await until(lambda: '"completion_tokens":2' in p.log.getvalue())


async def test_a_reload_forgets_nothing(tmp_path: Path) -> None:
    """A larger budget has what is left of it, a smaller one may be used up at once."""
    async with upstream(each(answers)) as cloud:
        config = settings({"cloud": openai(cloud.url)}, [DEAR])
        async with proxy(with_budget(config, budget={"day": "3 USD"}), tmp_path) as p:
            assert (await ask(p))[0] == 200
            for budget, code in (({"day": "0.4 USD"}, 429), ({"day": "100 USD"}, 200)):
                p.write(with_budget(config, budget=budget))
                await p.app.reload()
                assert (await ask(p))[0] == code
            assert spent(p, "alias mana/test") == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("budget", "path"),
    [
        ({"budget": {"day": "5"}}, "budget.day"),
        ({"budget": {"day": 5}}, "budget.day"),
        ({"budget": {"day": "-5 USD"}}, "budget.day"),
        ({"budget": {"day": "0 USD"}}, "budget.day"),
        ({"budget": {"month": "5 EUR"}}, "budget.month"),
        ({"budget": {"month": "1.5 tokens"}}, "budget.month"),
        ({"budget": {"week": "5 USD"}}, "budget.week"),
        ({"budget": {}}, "budget"),
        ({"on_budget": "local"}, "on_budget"),
        ({"budget": {"day": "5 USD"}, "on_budget": "stop"}, "on_budget"),
    ],
)
def test_mistakes_are_named_by_path(budget: dict[str, Any], path: str, tmp_path: Path) -> None:
    """Of an alias and of a key alike."""
    config = with_budget(settings({"cloud": openai("http://127.0.0.1:9")}), **budget)
    config["auth"] = {"keys": [entry(**budget)]}
    (tmp_path / "proxy.yaml").write_text(written(config))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "proxy.yaml", {})
    places = [line.partition(": ")[0] for line in caught.value.mistakes]
    assert sorted(places) == [f"aliases.mana/test.{path}", f"auth.keys[0].{path}"]


def test_a_price_that_a_budget_needs_is_remarked(tmp_path: Path) -> None:
    """By its path, once a chain entry; what is local or given needs none, and of an open entry none is known before."""
    chain = ["cloud/m", {**DEAR, "target": "cloud/n"}, "box/m", "cloud/*"]
    providers = {"cloud": openai("http://127.0.0.1:9"), "box": openai("http://127.0.0.1:9", local=True)}
    of_alias = with_budget(settings(providers, chain), budget={"day": "5 USD"})
    of_key = settings(providers, chain, auth={"keys": [entry(budget={"day": "5 USD"})]})
    for config in (of_alias, of_key):
        (tmp_path / "proxy.yaml").write_text(written(config))
        [note] = load(tmp_path / "proxy.yaml", {}).notes
        assert note.startswith("aliases.mana/test.chain[0].price: not known of cloud/m, so it costs no budget anything")
    (tmp_path / "proxy.yaml").write_text(written(with_budget(settings(providers, chain), budget={"day": "5 tokens"})))
    assert load(tmp_path / "proxy.yaml", {}).notes == ()


# What was spent outlives the process


def chat_of(url: str) -> Callable[[], Awaitable[tuple[int, str]]]:
    """One chat over a connection of its own: status, and who answered."""

    async def chat() -> tuple[int, str]:
        async with aiohttp.ClientSession() as client:
            async with client.post(f"{url}/v1/chat/completions", json={"messages": [], "max_tokens": 5}) as response:
                return response.status, response.headers.get("x-mana-llm-resolved", "")

    return chat


def kept(path: Path) -> float:
    """USD in the file."""
    return sum(row[2] for row in json.loads(path.read_text())["spent"]) if path.exists() else 0.0


async def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    """By SIGTERM not a cent, by SIGKILL at most what was spent in the last second; the log says where it is kept."""
    async with upstream(each(answers)) as cloud:
        config = with_budget(settings({"cloud": openai(cloud.url)}, [DEAR]), budget={"day": "6 USD"})
        file, environ = tmp_path / "spend.json", {"STATE_DIRECTORY": str(tmp_path)}
        async with process(config, tmp_path, environ) as running:
            await running.logs(f"budgets are kept in {file}")
            assert [(await chat_of(running.url)())[0] for _ in range(3)] == [200] * 3
            os.kill(running.pid, signal.SIGTERM)
            assert await running.child.wait() == 0
        assert kept(file) == pytest.approx(1.5)
        async with process(config, tmp_path, environ) as running:
            assert (await chat_of(running.url)())[0] == 200
            await until(lambda: kept(file) == pytest.approx(2.0))
            os.kill(running.pid, signal.SIGKILL)
            await running.child.wait()
        async with process(config, tmp_path, environ) as running:
            codes: list[int] = []
            while not codes or codes[-1] == 200:
                codes.append((await chat_of(running.url)())[0])
            assert codes[-1] == 429 and len(codes) < 9
        assert sorted(os.listdir(tmp_path)) == ["proxy.yaml", "spend.json"]
        assert file.stat().st_mode & 0o777 == 0o600


async def test_all_workers_spend_one_budget(tmp_path: Path) -> None:
    """Each hears of the others; one that is killed and its successor forget nothing, nor does the next start."""
    async with upstream(each(answers)) as cloud:
        config = with_budget(settings({"cloud": openai(cloud.url)}, [DEAR]), budget={"day": "100 USD"})
        file, environ = tmp_path / "spend.json", {"STATE_DIRECTORY": str(tmp_path)}
        async with process(config, tmp_path, environ, "--workers", "2") as running:
            await running.logs(f"budgets are kept in {file}")
            assert await asyncio.gather(*(chat_of(running.url)() for _ in range(20))) == [(200, "cloud/m")] * 20
            await until(lambda: kept(file) == pytest.approx(10.0))
            for pid in (await pids(running.url)).values():
                os.kill(pid, signal.SIGKILL)
            await running.logs('"worker ended"', 2)
            await until_served(running.url)
            before = kept(file)
            assert (await chat_of(running.url)())[0] == 200
            await until(lambda: kept(file) > before)
            os.kill(running.pid, signal.SIGTERM)
            assert await running.child.wait() == 0
        assert kept(file) == pytest.approx(0.5 * len(cloud.posts))
        config = with_budget(config, budget={"day": "5 USD"})
        async with process(config, tmp_path, environ, "--workers", "2") as running:
            await running.logs(f"budgets are kept in {file}")
            codes = [(await chat_of(running.url)())[0] for _ in range(6)]
            assert codes == [429] * 6


async def until_served(url: str) -> None:
    """Workers that were killed are back."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                if len((await health(url))["workers"]) == 2 and (await chat_of(url)())[0] == 200:
                    return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version":2,"spent":[]}', b'{"version":1,"spent":[["a",1,-5.0,1]]}']
)
async def test_a_file_that_is_none_of_ours_is_set_aside(content: bytes, tmp_path: Path) -> None:
    """The proxy serves, and says that it counts from 0; nothing is lost that somebody may want to look at."""
    (tmp_path / "kept.json").write_bytes(content)
    async with upstream(each(answers)) as cloud:
        config = with_budget(settings({"cloud": openai(cloud.url)}, [DEAR]), budget={"day": "5 USD"})
        async with proxy({**config, "spend_file": "kept.json"}, tmp_path) as p:
            assert (await ask(p))[0] == 200
            assert "what was spent is not kept" in p.log.getvalue()
            assert f"budgets are kept in {tmp_path / 'kept.json'}" in p.log.getvalue()
        assert kept(tmp_path / "kept.json") == pytest.approx(0.5)
        assert (tmp_path / "kept.json.unreadable").read_bytes() == content


def test_a_file_of_another_user_is_set_aside() -> None:
    """Of one who served here before us, say root: the next write would replace what it counted."""
    with tempfile.TemporaryDirectory() as folder:  # whose parents are everybody's
        Path(folder).chmod(0o777)
        path = Path(folder) / "spend.json"
        path.write_text(before := '{"version":1,"spent":[["key a",20000,4.0,40]]}')
        path.chmod(0)
        with contextlib.ExitStack() as again:
            if os.geteuid() == 0:
                os.seteuid(65534)
                again.callback(os.seteuid, 0)
            rows, wrong = spend_file.read(path)
            spend_file.write(path, [("key a", 20_001, 1.0, 10)])
        assert rows == []
        assert (
            wrong == "it cannot be read (Permission denied); it is spend.json.unreadable now, and counting begins at 0"
        )
        assert spend_file.read(path) == ([("key a", 20_001, 1.0, 10)], None)
        aside = path.with_name("spend.json.unreadable")
        aside.chmod(0o600)
        assert aside.read_text() == before


@pytest.mark.parametrize("made", [os.mkfifo, partial(os.symlink, "/dev/null"), os.mkdir])
def test_what_is_no_regular_file_stays_as_it_is(made: Callable[[Path], None], tmp_path: Path) -> None:
    """It is neither waited for nor renamed nor replaced: /dev/null would be, by a proxy that runs as root."""
    made(path := tmp_path / "spend.json")
    before = path.lstat()
    kept = (before.st_ino, before.st_mode, before.st_mtime_ns)  # to read a link may change when it was last read
    rows, wrong = spend_file.read(path)
    assert rows == []
    assert wrong is not None
    assert wrong.startswith("it cannot be read")
    with pytest.raises(OSError, match="no regular file"):
        spend_file.write(path, [("a", 1, 1.0, 1)])
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == kept
    assert [each.name for each in tmp_path.iterdir()] == ["spend.json"]


async def test_a_place_that_cannot_be_written_costs_no_request(tmp_path: Path) -> None:
    """It is said at the start, and budgets hold all the same; without any place the start says so."""
    async with upstream(each(answers)) as cloud:
        config = with_budget(settings({"cloud": openai(cloud.url)}, [DEAR]), budget={"day": "5 USD"})
        async with proxy({**config, "spend_file": "nowhere/spend.json"}, tmp_path) as p:
            assert f"its folder {tmp_path / 'nowhere'} is not there" in p.log.getvalue()
            assert (await ask(p))[0] == 200
            await until(lambda: "it cannot be written" in p.log.getvalue())
            (tmp_path / "nowhere").mkdir()  # as a disk that has room again: no request comes after that
        assert kept(tmp_path / "nowhere" / "spend.json") == pytest.approx(0.5)
        async with proxy(config, tmp_path) as p:
            assert (await ask(p))[0] == 200
            assert "budgets are kept in memory only" in p.log.getvalue()


# Every API


FORMS: list[tuple[str, str, dict[str, Any]]] = [
    ("chat", "/v1/chat/completions", {"messages": [], "max_tokens": 100}),
    ("chat", "/v1/completions", {"prompt": "a", "max_tokens": 100}),
    ("chat", "/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 100}),
    ("chat", "/v1/responses", {"input": "a", "max_output_tokens": 100}),
    ("chat", "/api/chat", {"messages": [{"role": "user", "content": "a"}], "options": {"num_predict": 100}}),
    ("chat", "/api/generate", {"prompt": "a", "options": {"num_predict": 100}}),
    ("messages", "/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 100}),
    ("responses", "/v1/responses", {"input": "a", "max_output_tokens": 100}),
]
SERVERS = {"chat": answers, "messages": speaks_messages, "responses": speaks_responses}


@pytest.mark.parametrize(("speaks", "path", "body"), FORMS, ids=[f"{path} over {speaks}" for speaks, path, _ in FORMS])
async def test_every_api_reserves_and_pays(speaks: str, path: str, body: dict[str, Any], tmp_path: Path) -> None:
    """Translated or relayed: `max_tokens` by whichever name is reserved, and the usage is charged, streamed or not."""
    async with upstream(each(SERVERS[speaks])) as cloud:
        config = settings({"cloud": openai(cloud.url, speaks=[speaks])}, [DEAR])
        config["auth"] = {"keys": [entry(tokens_per_minute=150, budget={"day": "15 USD"})]}
        headers = {"Authorization": f"Bearer {SECRET}"}
        async with proxy(config, tmp_path) as p:
            for stream in (False, True):
                before = spent(p, "key alice")
                payload = {"model": "mana/test", **body, "stream": stream}
                async with p.client.post(p.url + path, json=payload, headers=headers) as response:
                    assert (response.status, await response.read() != b"") == (200, True)
                charged = spent(p, "key alice") - before
                assert 0.45 < charged < 2, "some tokens at ten cents"
            for key in ("max_tokens", "max_output_tokens"):
                if key in body:
                    body = {**body, key: 200}
            if "options" in body:
                body = {**body, "options": {"num_predict": 200}}
            asked = len(cloud.posts)
            code, told, _ = await p.post(path, {"model": "mana/test", **body}, headers=headers)
            assert (code, len(cloud.posts)) == (429, asked), told
            assert "ask for less" in str(told) or "has spent" in str(told)


async def test_a_kept_answer_costs_nothing(tmp_path: Path) -> None:
    """Nor does one that several share; who is at its budget still gets what is kept. What it saved is counted."""
    async with upstream(each(answers)) as cloud:
        config = with_budget(settings({"cloud": openai(cloud.url)}, [DEAR]), budget={"day": "4 USD"})
        config["aliases"]["mana/test"]["cache"] = {"ttl": "1h"}
        config["auth"] = {"keys": [entry(tokens_per_minute=1000)]}
        async with proxy(config, tmp_path) as p:
            asked = [ask(p, seed=1), ask(p, seed=1, stream=False), ask(p, seed=1)]
            found = await asyncio.gather(*asked)
            assert sorted(headers["x-mana-llm-cache"] for _, _, headers in found) == ["hit", "hit", "miss"]
            assert spent(p, "alias mana/test") == pytest.approx(0.5) and len(cloud.posts) == 1
            left = found[-1][2]["x-ratelimit-remaining-tokens"]
            p.app.gateway.generation.ledger.merge([("alias mana/test", p.app.gateway.generation.ledger.day, 4.0, 40)])
            code, _, headers = await ask(p, seed=1)
            assert (code, headers["x-mana-llm-cache"]) == (200, "hit")
            assert int(headers["x-ratelimit-remaining-tokens"]) == 995 >= int(left)
            code, body, headers = await ask(p, seed=2)
            assert (code, body["error"]["code"], len(cloud.posts)) == (429, "budget_exceeded", 1)
            bearer = {"Authorization": f"Bearer {SECRET}"}
            payload = {"messages": [], "seed": 1, "stream": True}
            async with p.client.post(f"{p.url}/v1/chat/completions", json=payload, headers=bearer) as response:
                assert (response.status, response.headers["x-mana-llm-cache"]) == (200, "hit")
                assert (await response.read()).endswith(b"[DONE]\n\n")
            assert spent(p, "alias mana/test") == pytest.approx(4.5)
            told = p.app.metrics.render()[0].decode()
            assert value(told, "mana_llm_cache_saved_usd_total", alias="mana/test") == pytest.approx(4 * 0.5)
            assert value(told, "mana_llm_cost_usd_total", provider="cloud", model="m") == pytest.approx(0.5)
