"""Settings of providers and aliases that say what may be sent where, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from manallm_proxy.config.described import FILES, described
from manallm_proxy.config.load import load
from manallm_proxy.config.model import Config
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.targets import Target
from tests.proxy import written

Load = Callable[[str], Config]
PROVIDERS = "providers: {ollama: {kind: ollama}}\n"


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    def load_text(text: str) -> Config:
        path = tmp_path / "proxy.yaml"
        path.write_text(text)
        return load(path, {})

    return load_text


def mistakes(loaded: Load, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    return list(caught.value.mistakes)


def test_a_walk_has_no_limit_unless_one_is_given(loaded: Load) -> None:
    """The top level's holds for every alias and for bare targets; an alias may set its own, and 0 lifts it."""
    aliases = "aliases: {mana/a: {chain: [ollama/m]}, mana/b: {chain: [ollama/m], chain_timeout: %s}}\n"
    config = loaded(PROVIDERS + aliases % "90s")
    assert (config.chain_timeout, config.aliases["mana/a"].timeout, config.aliases["mana/b"].timeout) == (0, 0, 90)
    config = loaded(PROVIDERS + aliases % "0" + "chain_timeout: 2m")
    assert (config.chain_timeout, config.aliases["mana/a"].timeout, config.aliases["mana/b"].timeout) == (120, 120, 0)


@pytest.mark.parametrize(
    ("given", "speaks"),
    [
        ("kind: openai, base_url: 'http://box:8000/v1'", ("chat",)),
        ("kind: openai, base_url: 'https://api.openai.com/v1'", ("chat", "responses")),
        ("kind: openai, base_url: 'https://API.openai.com:443/v1'", ("chat", "responses")),
        ("kind: openai, base_url: 'https://api.openai.com.example/v1'", ("chat",)),
        ("kind: openai, base_url: 'https://api.openai.com/v1', speaks: [chat]", ("chat",)),
        ("kind: openai, base_url: 'http://box:8000/v1', speaks: [chat, responses, messages]",
         ("chat", "responses", "messages")),
        ("kind: openai, base_url: 'https://api.anthropic.com/v1', speaks: [messages]", ("messages",)),
        ("kind: ollama", ("chat",)),
        ("kind: ollama, api: openai, speaks: [chat, messages]", ("chat", "messages")),
        ("kind: google, api_key: x", ("chat",)),
        ("kind: loopback", ("chat",)),
    ],
)  # fmt: skip
def test_what_a_provider_speaks(loaded: Load, given: str, speaks: tuple[str, ...]) -> None:
    """Chat completions, unless it is said; OpenAI's own server is known to speak Responses too."""
    assert loaded(f"providers: {{p: {{{given}}}}}\naliases: {{}}").providers["p"].speaks == speaks


def test_what_is_not_given_is_not_assumed(loaded: Load) -> None:
    """Ollama may run on somebody else's machine, and clients set no options of its runner unasked."""
    provider = loaded(f"{PROVIDERS}aliases: {{}}").providers["ollama"]
    assert (provider.local, provider.client_options) == (False, False)
    text = "providers: {box: {kind: ollama, local: true, client_options: true}}\naliases: {}"
    provider = loaded(text).providers["box"]
    assert (provider.local, provider.client_options) == (True, True)
    assert loaded("providers: {b: {kind: openai, base_url: 'http://b', local: true}}\naliases: {}").providers["b"].local


SHOWN_DEFAULTS = {
    "providers": (
        *("api", "client_options", "degraded_cpu", "extra_retryable_statuses", "local", "stream_usage", "verify_tls"),
    ),
    "chain": ("cold", "max_wait"),
    "any": ("strategy",),
}  # fmt: skip
"""Keys of a provider, an entry and a tier that the shipped files show with their defaults."""


def test_a_default_is_what_the_shipped_files_show(loaded: Load) -> None:
    """To say it makes no difference."""
    shown = {key.place[-1]: key.value for name in FILES for key in described(name).keys}

    def config(place: str = "", **said: Any) -> Config:
        provider = {"kind": "ollama", **(said if place == "providers" else {})}
        entry = {"target": "ollama/m", **(said if place == "chain" else {})}
        tier = {"any": ["ollama/n", "ollama/o"], **(said if place == "any" else {})}
        return loaded(written({"providers": {"ollama": provider}, "aliases": {"mana/a": {"chain": [entry, tier]}}}))

    for place, names in SHOWN_DEFAULTS.items():
        for name in names:
            assert config(place, **{name: yaml.safe_load(shown[name])}) == config(), name
    provider = config().providers["ollama"]
    assert provider.base_url == "http://127.0.0.1:11434"
    assert provider.extra_retryable_statuses == {408, 498}


def test_an_empty_answer_may_move_on(loaded: Load) -> None:
    """One more class under fallback_on, of an alias and of an entry."""
    config = loaded(
        f"{PROVIDERS}aliases: {{mana/a: {{fallback_on: [empty], "
        "chain: [ollama/m, {target: ollama/n, fallback_on: [auth]}]}}"
    )
    assert [entry.fallback_on for entry in config.aliases["mana/a"]] == [{"empty"}, {"auth"}]


OPTIONS = "options are sent by kind ollama only, not by kind"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("kind: ollama, local: 'yes'", "local: expected true or false, got a string"),
        ("kind: ollama, client_options: 1", "client_options: expected true or false, got a number"),
        ("kind: openai, base_url: 'http://x', client_options: true", f"client_options: {OPTIONS} openai"),
        ("kind: google, api_key: x, client_options: true", f"client_options: {OPTIONS} google"),
        (
            "kind: ollama, api: openai, client_options: true",
            "client_options: options are not sent with 'api: openai', which relays requests as they are",
        ),
        ("kind: ollama, speaks: chat", "speaks: expected a list, got a string"),
        ("kind: ollama, speaks: []", "speaks: needs at least one dialect"),
        ("kind: ollama, speaks: [chat, chat]", "speaks: names a dialect twice"),
        (
            "kind: ollama, speaks: [chat, mesages]",
            "speaks[1]: expected one of chat, responses, messages (did you mean 'messages'?)",
        ),
        ("kind: google, api_key: x, speaks: [chat]", "speaks: kind google has no choice of dialects"),
        ("kind: loopback, speaks: [chat]", "speaks: kind loopback has no choice of dialects"),
    ],
)
def test_mistake_in_a_provider(loaded: Load, given: str, wanted: str) -> None:
    """One mistake, one line, below the provider's name."""
    assert mistakes(loaded, f"providers: {{p: {{{given}}}}}\naliases: {{}}") == [f"providers.p.{wanted}"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "chain_timeout: -1\naliases: {}",
            "chain_timeout: expected a duration of at least 0 and at most 365 days",
        ),
        (
            "chain_timeout: soon\naliases: {}",
            "chain_timeout: expected a number of seconds or '500ms', '30s', '5m', got a string",
        ),
        (
            "aliases: {mana/a: {chain: [ollama/m], chain_timeout: true}}",
            "aliases.mana/a.chain_timeout: expected a number of seconds or '500ms', '30s', '5m', got true or false",
        ),
        (
            "aliases: {mana/a: {chain: [ollama/m], timeout: 3}}",
            "aliases.mana/a.timeout: unknown key (did you mean 'chain_timeout'?)",
        ),
    ],
)
def test_mistake_in_a_chains_timeout(loaded: Load, text: str, wanted: str) -> None:
    """One mistake, one line."""
    assert mistakes(loaded, f"{PROVIDERS}{text}\n") == [wanted]


BOXES = """
providers:
  box: {kind: ollama, options: {num_ctx: 8192}}
  too: {kind: ollama}
  gpu: {kind: openai, base_url: 'http://x/v1'}
"""
TWO = """
aliases:
  mana/a: {{chain: [{{target: box/m, options: {{{0}}}}}]}}
  mana/b: {{chain: [{{target: {2}, options: {{{1}}}}}]}}
"""


@pytest.mark.parametrize("name", ["box/m", "box/M:latest", "box/library/m", "too/registry.ollama.ai/library/m:latest"])
def test_two_windows_for_one_model_are_a_mistake(loaded: Load, name: str) -> None:
    """However the model is called, and whichever provider leads to its Ollama: both numbers and both places."""
    (what,) = mistakes(loaded, BOXES + TWO.format("num_ctx: 8192", "num_ctx: 4096", name))
    assert what.startswith("aliases.mana/b.chain[0].options.num_ctx: is 4096 here and 8192 at aliases.mana/a.chain[0]")
    (what,) = mistakes(loaded, BOXES + TWO.format("keep_alive: 5m", "keep_alive: 1h", name))
    assert "keep_alive" in what
    loaded(BOXES + TWO.format("num_ctx: 8192, top_k: 1", "num_ctx: 8192, top_k: 2", name))


def test_other_models_may_have_other_windows(loaded: Load) -> None:
    loaded(BOXES + TWO.format("num_ctx: 8192", "num_ctx: 4096", "box/m:7b"))


def test_an_entry_without_a_window_gets_the_models(loaded: Load) -> None:
    """So does whoever asks for the target by its own name; else the model's own default would be a second window."""
    config = loaded(BOXES + TWO.format("num_ctx: 4096, shift: false", "top_k: 2", "too/m"))
    assert config.aliases["mana/b"].entries[0].options == {"num_ctx": 4096, "shift": False, "top_k": 2}
    assert config.options_of(Target("too", "m:latest")) == {"num_ctx": 4096, "shift": False}
    assert config.options_of(Target("box", "m")) == {"num_ctx": 4096, "shift": False}
    assert config.options_of(Target("box", "other")) == {"num_ctx": 8192}
    assert config.options_of(Target("gpu", "m")) == {}


BOX = "providers: {box: {kind: ollama, local: true}, far: {kind: ollama}}\n"


def test_what_a_cold_model_means_to_an_entry(loaded: Load) -> None:
    """It waits for five minutes unless the entry says otherwise."""
    entries = "[box/m, {target: box/n, cold: next, load_timeout: 20s}]"
    first, second = loaded(BOX + f"aliases: {{mana/a: {{chain: {entries}}}}}").aliases["mana/a"]
    assert (first.cold, first.load_timeout, second.cold, second.load_timeout) == ("wait", None, "next", 20.0)
    (what,) = mistakes(loaded, BOX + "aliases: {mana/a: {chain: [{target: box/m, cold: never}]}}")
    assert what.startswith("aliases.mana/a.chain[0].cold: ")


def test_what_is_kept_loaded(loaded: Load) -> None:
    """As its entry asks for it; only a local Ollama or llama-server can be told to load anything."""
    alias = "aliases: {mana/a: {chain: [{target: box/m, options: {num_ctx: 4096}}]}}\n"
    config = loaded(BOX + alias + "warm: [box/m, box/n, 'box/M:latest']")
    assert [dict(entry.options) for entry in config.warm] == [{"num_ctx": 4096}, {}, {"num_ctx": 4096}]
    assert mistakes(loaded, BOX + "aliases: {}\nwarm: [far/m, bux/m]") == [
        "warm[0]: far is no Ollama or llama-server with 'local: true'",
        "warm[1]: no provider 'bux' (did you mean 'box'?)",
    ]


def test_what_stays_in_the_house(loaded: Load) -> None:
    """An alias may be bound to it; there is no other place to be bound to."""
    config = loaded(BOX + "aliases: {mana/a: {chain: [box/m], locality: local}, mana/b: {chain: [box/m]}}")
    assert (config.aliases["mana/a"].local_only, config.aliases["mana/b"].local_only) == (True, False)
    (what,) = mistakes(loaded, BOX + "aliases: {mana/a: {chain: [box/m], locality: eu}}")
    assert what.startswith("aliases.mana/a.locality: ")
