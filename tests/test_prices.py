"""What tokens cost: given, listed, local, unknown; and what was saved by staying local."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.config import price_list
from manallm_proxy.config.load import load
from manallm_proxy.config.model import Config
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.prices import FREE, Price
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai.usage import usage_from_openai
from tests.figures import value
from tests.proxy import openai, proxy, settings, written
from tests.upstreams import answers, each, upstream

BOX = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "local": True}
GROQ = {"kind": "openai", "base_url": "https://api.groq.com/openai/v1"}
PRICED = {"target": "cloud/m", "price": {"input": 100_000, "output": 100_000}}
"""Half a dollar for an answer of `upstreams.answers`, which has 5 tokens."""


def read(folder: Path, providers: dict[str, Any], chain: list[Any], **more: Any) -> Config:
    path = folder / "proxy.yaml"
    path.write_text(written(settings(providers, chain, **more)))
    return load(path, {})


def test_a_price_is_a_multiplication() -> None:
    """What was read from a cache is a part of the prompt; a long prompt makes all of the request dearer."""
    usage = Usage(prompt=1_000_000, completion=500_000, cached=400_000)
    assert Price(2.0, 10.0).cost(usage) == 7.0
    assert Price(2.0, 10.0, 0.5).cost(usage) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 5)
    tiered = Price(1.0, above=((200_000, Price(2.0)), (900_000, Price(4.0))))
    costs = [tiered.cost(Usage(prompt=tokens)) for tokens in (200_000, 200_001, 1_000_000)]
    assert costs == pytest.approx([0.2, 0.400002, 4.0])
    assert Price(2.0, 1.0, 0.5).cost(Usage(prompt=10, cached=20)) == pytest.approx(10 * 0.5 / 1e6), "never below"
    assert FREE.is_free and not Price(0.0, 1.0).is_free


def test_reasoning_is_counted_once() -> None:
    """Most count it as a part of the completion, some beside it; the total tells which."""
    details = {"completion_tokens_details": {"reasoning_tokens": 94}, "prompt_tokens": 32}
    beside = usage_from_openai({**details, "completion_tokens": 9, "total_tokens": 135})
    within = usage_from_openai({**details, "completion_tokens": 103, "total_tokens": 135})
    assert beside == within == Usage(prompt=32, completion=103, reasoning=94)
    assert usage_from_openai({**details, "completion_tokens": 103}) == within


def test_whose_price_counts(tmp_path: Path) -> None:
    """The entry's own, for its target wherever it is named; what is local costs its power, loopback nothing."""
    providers = {
        "box": {**BOX, "electricity": 0.02},
        "gpu": BOX,
        "loop": {"kind": "loopback"},
        "cloud": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"},
        "ollama": {"kind": "ollama", "local": True},
    }
    config = read(tmp_path, providers, ["box/m", "gpu/m", {**PRICED, "price": {"input": 3, "cached": 0.5}}, "loop/m"])
    assert [entry.price for entry in config.aliases["mana/test"]] == [
        Price(0.02, 0.02),
        FREE,
        Price(3.0, 0.0, 0.5),
        FREE,
    ]
    assert config.price_of(Target("cloud", "m")) == Price(3.0, 0.0, 0.5)
    assert config.price_of(Target("cloud", "other")) is None
    assert config.price_of(Target("ollama", "gpt-oss:120b-cloud")) is None, "it is handed on to ollama.com"
    box, gpu, cloud, _ = config.aliases["mana/test"]
    assert (box.avoided_price, gpu.avoided_price, cloud.avoided_price) == (
        Price(3.0, 0.0, 0.5),
        Price(3.0, 0.0, 0.5),
        None,
    )
    assert config.uses_price_list is False


def test_a_price_that_is_wanted_is_looked_up(tmp_path: Path) -> None:
    """In genai-prices, by address and model; one that is not known is remarked by its path."""
    pytest.importorskip("genai_prices")
    chain = ["box/m", "groq/llama-3.1-8b-instant", "groq/nobody-knows-this", "gemini/gemini-2.5-pro"]
    providers = {"box": BOX, "groq": GROQ, "gemini": {"kind": "google", "api_key": "x"}}
    config = read(tmp_path, providers, chain)
    box, groq, unknown, gemini = config.aliases["mana/test"]
    assert config.uses_price_list
    assert groq.price is not None and 0 < groq.price.input <= groq.price.output < 10
    assert box.avoided_price == groq.price
    assert unknown.price is None
    assert [note.partition(":")[0] for note in config.notes] == ["aliases.mana/test.chain[2].price"]
    assert gemini.price is not None and gemini.price.cached is not None
    assert [tokens for tokens, _ in gemini.price.above] == [200_000]
    assert gemini.price.above[0][1].input > gemini.price.input


def test_our_sums_are_those_of_genai_prices() -> None:
    """Cached tokens, tiers and what has no price for caches, by its own calculation."""
    genai = pytest.importorskip("genai_prices")
    from manallm_proxy.config.price_list import GOOGLE, listed_price

    cases = [("https://api.openai.com/v1", "gpt-4o"), ("https://api.groq.com/openai/v1", "llama-3.1-8b-instant")]
    for url, model in [*cases, (GOOGLE, "gemini-2.5-pro"), ("https://api.deepinfra.com/v1", "gpt-4o")]:
        price = listed_price(url, model)
        for prompt, completion, cached in ((1000, 100, 0), (1000, 100, 400), (200_000, 9, 0), (200_001, 9, 200_001)):
            if "deepinfra" in url:
                assert price is None, "a host that it does not know"
                continue
            usage = genai.Usage(input_tokens=prompt, output_tokens=completion, cache_read_tokens=cached)
            theirs = genai.calc_price(usage, model, provider_api_url=url).total_price
            assert price is not None
            assert price.cost(Usage(prompt, completion, 0, cached)) == pytest.approx(float(theirs))


def test_the_dearest_hour_counts() -> None:
    """DeepSeek was cheaper at night; which hour it will be is not known when the configuration is read."""
    genai = pytest.importorskip("genai_prices")
    from datetime import UTC, datetime

    from manallm_proxy.config.price_list import listed_price

    price = listed_price("https://api.deepseek.com/v1", "deepseek-chat")
    assert price is not None
    usage = genai.Usage(input_tokens=1000, output_tokens=100)
    for hour in range(24):
        at = datetime.now(UTC).replace(hour=hour)
        theirs = genai.calc_price(
            usage, "deepseek-chat", provider_api_url="https://api.deepseek.com/v1", genai_request_timestamp=at
        )
        assert price.cost(Usage(1000, 100)) >= float(theirs.total_price) - 1e-12


def test_without_genai_prices_what_is_not_given_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else changes."""
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    monkeypatch.setitem(sys.modules, "genai_prices.data_snapshot", None)
    price_list.listed_price.cache_clear()
    config = read(tmp_path, {"box": BOX, "groq": GROQ}, ["box/m", "groq/llama-3.1-8b-instant"])
    price_list.listed_price.cache_clear()
    assert [entry.price for entry in config.aliases["mana/test"]] == [FREE, None]


def test_who_needs_no_price_does_not_wait_for_them(tmp_path: Path) -> None:
    """The import takes longer than all of the reading."""
    code = (
        "import sys; from pathlib import Path; from manallm_proxy.config.load import load; "
        f"load(Path({str(tmp_path / 'proxy.yaml')!r}), {{}}); print('genai_prices' in sys.modules)"
    )
    (tmp_path / "proxy.yaml").write_text(written(settings({"groq": GROQ, "box": BOX}, ["groq/m", "box/m"])))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ({**PRICED, "price": {"input": -1}}, "chain[0].price.input"),
        ({**PRICED, "price": {"input": "2"}}, "chain[0].price.input"),
        ({**PRICED, "price": {"input": float("inf")}}, "chain[0].price.input"),
        ({**PRICED, "price": {"output": 2}}, "chain[0].price.input"),
        ({**PRICED, "price": {"input": 1, "cached": True}}, "chain[0].price.cached"),
        ({**PRICED, "price": {"input": 1, "inputs": 1}}, "chain[0].price.inputs"),
        ({**PRICED, "price": 3}, "chain[0].price"),
    ],
)
def test_mistakes_are_named_by_path(entry: dict[str, Any], path: str, tmp_path: Path) -> None:
    """One each, at the key that is wrong."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, {"cloud": GROQ}, [entry])
    assert [line.partition(":")[0] for line in caught.value.mistakes] == [f"aliases.mana/test.{path}"]


def test_electricity_is_for_a_server_of_your_own(tmp_path: Path) -> None:
    """Others send a bill."""
    with pytest.raises(ConfigError, match=r"providers\.cloud\.electricity: is for a server of your own"):
        read(tmp_path, {"cloud": {**GROQ, "electricity": 0.02}}, ["cloud/m"])


async def test_what_staying_local_saved(tmp_path: Path) -> None:
    """Counted under the alias, whole and streamed; not for a target's own name, and not what the cloud answers."""
    async with upstream(each(answers)) as gpu, upstream(each(answers)) as cloud:
        config = settings({"box": openai(gpu.url, local=True), "cloud": openai(cloud.url)}, ["box/m", PRICED])
        async with proxy(config, tmp_path) as p:
            async with p.client.get(f"{p.url}/metrics") as response:
                assert "# HELP mana_llm_avoided_cost_usd_total" in await response.text()
            assert (await p.chat())[0] == 200
            assert (await p.stream())[0] == 200
            for model in ("box/m", "cloud/m"):
                assert (await p.chat(model=model))[0] == 200
            async with p.client.get(f"{p.url}/metrics") as response:
                told = await response.text()
            assert value(told, "mana_llm_avoided_cost_usd_total", alias="mana/test") == pytest.approx(2 * 0.5)
            assert value(told, "mana_llm_cost_usd_total", provider="cloud", model="m") == pytest.approx(0.5)
            assert value(told, "mana_llm_cost_usd_total", provider="box", model="m") is None
            _, explained = await p.get("/v1/explain?model=mana/test")
            assert [row["price"] for row in explained["chain"]] == [
                "costs nothing",
                "100000 in, 100000 out USD per million tokens",
            ]
            _, explained = await p.get("/v1/explain?model=cloud/other")
            assert explained["chain"][0]["price"] == "unknown"
