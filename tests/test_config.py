"""Configuration: what is taken, what is refused, in which words, and that no secret is among them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manallm_proxy.config.keys_model import ClientKey
from manallm_proxy.config.load import exposure_mistake, find, load
from manallm_proxy.config.loopback import is_loopback
from manallm_proxy.config.model import Config
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.targets import Target, Timeouts

SHIPPED = Path(__file__).parent.parent / "config"
SECRET = "sk-verysecret0123456789"  # nobody's
DIGEST = "1f" * 32
PROVIDERS = """
providers:
  ollama: {kind: ollama}
  groq: {kind: openai, base_url: "https://api.groq.com/openai/v1"}
  google: {kind: google, api_key: "AIza"}
  loopback: {kind: loopback}
"""
ALIASES = "aliases: {}\n"

Load = Callable[..., Config]


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    """Loads a configuration from text, with the environment given by keywords."""

    def load_text(text: str, **environ: str) -> Config:
        path = tmp_path / "proxy.yaml"
        path.write_text(text)
        return load(path, environ)

    return load_text


@pytest.fixture
def mistakes(loaded: Load) -> Callable[..., list[str]]:
    """All mistakes of a text, as `check` prints them; empty where there is none."""

    def of(text: str, **environ: str) -> list[str]:
        try:
            loaded(text, **environ)
        except ConfigError as error:
            return list(error.mistakes)
        return []

    return of


Told = Callable[..., list[str]]


# What ships


@pytest.mark.parametrize("name", ["proxy.yaml", "quickstart.yaml"])
def test_shipped_configuration_loads_without_any_environment(name: str) -> None:
    """No key, no variable: it loads, on loopback, with the six aliases, and the clouds are unconfigured."""
    config = load(SHIPPED / name, {})
    assert (config.listen.host, config.listen.port) == ("127.0.0.1", 3025)
    classes = ("fast-text", "long-form", "structured", "reasoning", "vision", "embed")
    assert list(config.aliases) == [f"mana/{c}" for c in classes]
    assert config.default == "mana/fast-text"
    assert config.default_provider == "ollama"
    assert config.providers["ollama"].base_url == "http://127.0.0.1:11434"
    missing = {name: p.api_key_missing for name, p in config.providers.items() if not p.configured}
    assert missing == {
        "openrouter": "OPENROUTER_API_KEY is not set",
        "groq": "GROQ_API_KEY is not set",
        "together": "TOGETHER_API_KEY is not set",
        "google": "GOOGLE_API_KEY is not set",
    }


def test_a_key_in_the_environment_is_all_it_takes() -> None:
    """Setting GROQ_API_KEY configures groq, and OLLAMA_URL moves ollama."""
    config = load(SHIPPED / "proxy.yaml", {"GROQ_API_KEY": "gsk-1", "OLLAMA_URL": "http://box:11434/"})
    assert config.providers["groq"].configured
    assert config.providers["groq"].api_key == "gsk-1"
    assert config.providers["ollama"].base_url == "http://box:11434"


def test_shipped_proxy_yaml_shows_the_defaults() -> None:
    """Each value that proxy.yaml shows is the one that holds where it is left out."""
    shipped = load(SHIPPED / "proxy.yaml", {})
    bare = load(SHIPPED / "quickstart.yaml", {})
    own = {"providers", "aliases", "path", "health"}  # a newcomer starts Ollama while we run
    for field in attrs.fields(Config):
        if field.name not in own:
            assert getattr(shipped, field.name) == getattr(bare, field.name), field.name


def test_shipped_proxy_yaml_shows_every_key() -> None:
    """No setting is left for the reader to guess."""
    written = yaml.safe_load((SHIPPED / "proxy.yaml").read_text().replace("${", "$"))
    config = load(SHIPPED / "proxy.yaml", {})
    for section in ("limits", "health", "timeouts", "streaming", "responses", "metrics", "log", "cors", "auth"):
        assert set(written[section]) == {f.name for f in attrs.fields(type(getattr(config, section)))}


def test_every_quickstart_chain_ends_in_loopback() -> None:
    """The first chat is answered without Ollama and without a key."""
    config = load(SHIPPED / "quickstart.yaml", {})
    assert {str(chain.entries[-1].target) for chain in config.aliases.values()} == {"loopback/echo"}


def test_shipped_embedding_chain_has_one_model() -> None:
    """Vectors of two models cannot be compared: a fallback would spoil an index in silence."""
    models = {entry.target.model for entry in load(SHIPPED / "proxy.yaml", {}).aliases["mana/embed"]}
    assert models == {"nomic-embed-text"}


# What is taken


@pytest.mark.parametrize(
    ("text", "read", "wanted"),
    [
        ("listen: {port: 0}", lambda c: c.listen.port, 0),
        ("listen: {unix: /run/p.sock}", lambda c: c.listen.unix, "/run/p.sock"),
        ("listen:", lambda c: c.listen.port, 3025),
        ("limits: {body: 64KiB}", lambda c: c.limits.body, 65536),
        ("limits: {body: 1GiB}", lambda c: c.limits.body, 2**30),
        ("limits: {body: 2MB}", lambda c: c.limits.body, 2_000_000),
        ("limits: {body: 1000}", lambda c: c.limits.body, 1000),
        ("limits: {drain: 0}", lambda c: c.limits.drain, 0.0),
        ("timeouts: {connect: 500ms}", lambda c: c.timeouts, Timeouts(connect=0.5)),
        ("timeouts: {first_byte: 5m, idle: 1h}", lambda c: c.timeouts, Timeouts(3.0, 300.0, 3600.0)),
        ("timeouts: {connect: 1.5}", lambda c: c.timeouts.connect, 1.5),
        ("streaming: {heartbeat: 0, early_heartbeat: 45s}", lambda c: c.streaming.early_heartbeat, 45.0),
        ("log: {level: debug, format: json}", lambda c: (c.log.level, c.log.format), ("debug", "json")),
        ("cors: {origins: ['https://a.example']}", lambda c: c.cors.origins, ("https://a.example",)),
        ("metrics: {enabled: false}", lambda c: c.metrics.enabled, False),
        ("default_provider: groq", lambda c: c.default_provider, "groq"),
        ("default_provider:", lambda c: c.default_provider, "ollama"),
    ],
)
def test_value_is_taken(loaded: Load, text: str, read: Callable[[Config], Any], wanted: Any) -> None:
    """Plain values, units, and sections left empty."""
    assert read(loaded(f"{text}\n{PROVIDERS}{ALIASES}")) == wanted


def test_provider_settings(loaded: Load) -> None:
    """Everything that one provider may say for itself."""
    config = loaded(
        """
        timeouts: {connect: 1, idle: 7}
        providers:
          p:
            kind: ollama
            base_url: https://host:1/sub/
            api_key: k
            headers: {X-Team: a b}
            timeouts: {first_byte: 9}
            max_concurrent: 2
            api: native
            extra_retryable_statuses: [418]
            verify_tls: false
            proxy: http://u:pw@proxy:3128
            options: {num_ctx: 8192, keep_alive: 5m, stop: [a]}
            stream_usage: false
        aliases: {}
        """
    )
    provider = config.providers["p"]
    assert provider.base_url == "https://host:1/sub"
    assert provider.headers == {"X-Team": "a b"}
    assert provider.timeouts == Timeouts(connect=1.0, first_byte=9.0, idle=7.0)
    assert (provider.max_concurrent, provider.api, provider.verify_tls, provider.stream_usage) == (
        2,
        "native",
        False,
        False,
    )
    assert provider.extra_retryable_statuses == {418}
    assert provider.options == {"num_ctx": 8192, "keep_alive": "5m", "stop": ["a"]}
    assert provider.configured
    assert config.default_provider is None


def test_local_openai_server_needs_no_key(loaded: Load) -> None:
    """kind openai without api_key is configured; google without one is not."""
    config = loaded("providers: {l: {kind: openai, base_url: 'http://x/v1'}, g: {kind: google}}\naliases: {}")
    assert config.providers["l"].configured
    assert config.providers["g"].api_key_missing == "no api_key is given"


def test_chain_entry_resolves_what_it_leaves_out(loaded: Load) -> None:
    """Timeouts: entry over provider over global; options: merged; fallback_on: the entry's, else the alias's."""
    config = loaded(
        """
        timeouts: {idle: 5}
        providers: {o: {kind: ollama, timeouts: {connect: 2}, options: {a: 1, b: 1}}}
        aliases:
          mana/x:
            description: d
            fallback_on: [auth, 409]
            chain: [o/m:7b, {target: o/a/b, timeouts: {idle: 8}, options: {b: 2}, fallback_on: ["404"]}]
        default: mana/x
        """
    )
    chain = config.aliases["mana/x"]
    first, second = chain
    assert (chain.alias, chain.description, config.default) == ("mana/x", "d", "mana/x")
    assert first.target == Target("o", "m:7b")
    assert (first.timeouts, first.options) == (Timeouts(2.0, 120.0, 5.0), {"a": 1, "b": 1})
    assert first.fallback_on == {"auth", "409"}
    assert second.target == Target("o", "a/b")
    assert (second.timeouts, second.options) == (Timeouts(2.0, 120.0, 8.0), {"a": 1, "b": 2})
    assert second.fallback_on == {"404"}


def test_aliases_beside(loaded: Load, tmp_path: Path) -> None:
    """aliases.yaml beside proxy.yaml is read by default, another one by its name, under another prefix too."""
    (tmp_path / "aliases.yaml").write_text("aliases: {mana/x: {chain: [groq/m]}}\ndefault: mana/x")
    (tmp_path / "other.yaml").write_text("aliases: {our/y: {chain: [groq/m]}}")
    assert loaded(PROVIDERS).default == "mana/x"
    other = loaded(f"alias_prefix: our/\naliases_file: other.yaml\n{PROVIDERS}")
    assert list(other.aliases) == ["our/y"]
    assert other.default is None


def test_yaml_is_read_without_the_surprises_of_1_1(loaded: Load) -> None:
    """``no`` is a word, 1:30 no number, and anchors with overrides work."""
    config = loaded(
        """
        providers:
          a: &base {kind: ollama, base_url: "http://x", options: {say: no, n: 010, t: 1:30, d: 2024-01-01}}
          b: {<<: *base, base_url: "http://y"}
        aliases: {}
        """
    )
    assert config.providers["b"].options == {"say": "no", "n": "010", "t": "1:30", "d": "2024-01-01"}
    assert config.providers["b"].base_url == "http://y"


# Variables


@pytest.mark.parametrize(
    ("value", "environ", "wanted"),
    [
        ("${PORT:-3025}", {}, 3025),
        ("${PORT:-3025}", {"PORT": "80"}, 80),
        ("${PORT:-3025}", {"PORT": ""}, 3025),
        ('"${PORT}"', {"PORT": "80"}, 80),
    ],
)
def test_variable_where_a_number_is_wanted(loaded: Load, value: str, environ: dict[str, str], wanted: int) -> None:
    """A whole value from the environment is read as YAML reads it; an empty one counts as not set."""
    assert loaded(f"listen:\n  port: {value}\n{ALIASES}", **environ).listen.port == wanted


def test_variable_in_every_kind_of_place(loaded: Load) -> None:
    """Durations, sizes, truth values, lists, within text, and more than one in a value."""
    config = loaded(
        """
        limits: {body: "${B}", drain: "${D}", body_timeout: "${S}"}
        metrics: {enabled: "${E}"}
        listen: {unix: "${NONE:-}"}
        cors: {origins: ["https://${A}.${Z}"]}
        providers: {p: {kind: openai, base_url: "http://x", api_key: "${K}", headers: {X: "a$${b}"}}}
        aliases: {}
        """,
        B="2MiB", D="1m", S="3", E="false", A="chat", Z="example", K="123456",
    )  # fmt: skip
    assert (config.limits.body, config.limits.drain, config.limits.body_timeout) == (2**21, 60.0, 3.0)
    assert config.metrics.enabled is False
    assert config.listen.unix is None
    assert config.cors.origins == ("https://chat.example",)
    assert config.providers["p"].api_key == "123456"
    assert config.providers["p"].headers == {"X": "a${b}"}


def test_credential_comes_before_the_environment(loaded: Load, tmp_path: Path) -> None:
    """A file in $CREDENTIALS_DIRECTORY wins, without its newline; an empty one counts as not there."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "KEY").write_text("from-file\n")
    (folder / "HOST").write_text("\n")
    text = f"listen: {{host: '${{HOST}}'}}\nproviders: {{g: {{kind: google, api_key: '${{KEY}}'}}}}\n{ALIASES}"
    config = loaded(text, CREDENTIALS_DIRECTORY=str(folder), KEY="from-env", HOST="127.0.0.2")
    assert config.providers["g"].api_key == "from-file"
    assert config.listen.host == "127.0.0.2"


def test_what_is_no_credential_is_in_the_environment(loaded: Load, tmp_path: Path) -> None:
    """As systemd passes some of it by files, and the rest by variables."""
    text = f"providers: {{g: {{kind: google, api_key: '${{KEY}}'}}}}\n{ALIASES}"
    for folder in (tmp_path, tmp_path / "proxy.yaml", tmp_path / "none"):
        assert loaded(text, CREDENTIALS_DIRECTORY=str(folder), KEY="from-env").providers["g"].api_key == "from-env"


def test_a_socket_is_beside_its_file(loaded: Load, tmp_path: Path) -> None:
    """As every other file that is named, so that commands find it from wherever they are called."""
    assert loaded("listen: {unix: p.sock}\nproviders: {}\naliases: {}").listen.unix == str(tmp_path / "p.sock")


def test_a_sockets_path_has_a_length(mistakes: Told) -> None:
    """In bytes, and in all: a shorter name in a folder far down is too long as well, and nobody could listen there."""
    text = "listen: {{unix: '/{}'}}\nproviders: {{}}\naliases: {{}}"
    for name, fits in (("a" * 106, True), ("a" * 107, False), ("é" * 53, True), ("é" * 54, False)):
        found = [mistake for mistake in mistakes(text.format(name)) if mistake.startswith("listen.unix")]
        assert [mistake.partition(" (")[0] for mistake in found] == (
            [] if fits else ["listen.unix: expected at most 107 bytes: the kernel takes no longer path for a socket"]
        )


def test_key_file_is_read_at_each_load(loaded: Load, tmp_path: Path) -> None:
    """A rotated key is there after a reload."""
    text = "providers: {g: {kind: google, api_key_file: g.key}}\naliases: {}"
    for key in ("first", "second"):
        (tmp_path / "g.key").write_text(f"{key}\n")
        assert loaded(text).providers["g"].api_key == key


@pytest.mark.parametrize(("name", "why"), [("pipe", "it is no regular file"), ("zero", "it is no regular file")])
def test_a_key_file_that_never_ends_is_not_read(mistakes: Told, tmp_path: Path, name: str, why: str) -> None:
    """Nor waited for, be it a key's or a credential's: `check`, the start and each reload would hang, or eat memory."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    told = mistakes(f"providers: {{g: {{kind: google, api_key_file: {name}}}}}\naliases: {{}}")
    assert told == [f"providers.g.api_key_file: the file cannot be read ({why})"]
    text = f"providers: {{g: {{kind: google, api_key: '${{{name}}}'}}}}\naliases: {{}}"
    assert mistakes(text, CREDENTIALS_DIRECTORY=str(tmp_path)) == [
        f"{tmp_path}/proxy.yaml: line 1: the credential {name} cannot be read"
    ]


def test_a_key_in_quotes_is_noted(loaded: Load) -> None:
    """`docker run --env-file` and the like pass them on, and the provider would only say that the key is wrong."""
    text = "providers: {g: {kind: google, api_key: '${A}'}}\naliases: {}"
    for key in ("'abc'", '"abc"'):
        [note] = loaded(text, A=key).notes
        assert note.startswith("providers.g.api_key: begins and ends with a quote, which is taken as a part of it")
        assert "abc" not in note


def test_shared_state_without_its_address_is_noted(loaded: Load) -> None:
    """Or limits that several instances were to share would be each one's own, and nobody knew."""
    text = "state: ${REDIS_URL}\nproviders: {}\naliases: {}"
    [note] = loaded(text).notes
    assert note.startswith("state: REDIS_URL is not set, so nothing is shared")
    assert loaded(text.replace("REDIS_URL", "REDIS_URL:-redis://a"), A="").notes == ()


def test_a_wrong_value_of_a_variable_names_it(mistakes: Told) -> None:
    """The file has only its name, and nothing is wrong there; a default is in the file itself."""
    text = "providers: {p: {kind: ollama, base_url: '${URL:-localhost}'}}\naliases: {}"
    wrong = "providers.p.base_url: expected a URL with http:// or https:// and a host"
    assert mistakes(text, URL="localhost:11434") == [f"{wrong} (the value of URL)"]
    assert mistakes(text) == [wrong]


def test_unset_key_leaves_a_provider_unconfigured(loaded: Load) -> None:
    """That is no mistake: it is listed, with the reason."""
    config = loaded("providers: {p: {kind: ollama, api_key: '${A}${B}'}}\naliases: {}")
    assert not config.providers["p"].configured
    assert config.providers["p"].api_key_missing == "A and B are not set"


# What is refused


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("foo: 1", "foo: unknown key"),
        ("listn: {}", "listn: unknown key (did you mean 'listen'?)"),
        ("listen: {prot: 1}", "listen.prot: unknown key (did you mean 'port'?)"),
        ("listen: 3", "listen: expected keys and values, got a number"),
        ('listen: {port: "3"}', "listen.port: expected a whole number from 0 to 65535, got a string"),
        ("listen: {port: 3.7}", "listen.port: expected a whole number from 0 to 65535, got a number"),
        ("listen: {port: true}", "listen.port: expected a whole number from 0 to 65535, got true or false"),
        ("listen: {port: 65536}", "listen.port: expected a whole number from 0 to 65535"),
        ("listen: {port: -1}", "listen.port: expected a whole number from 0 to 65535"),
        ("listen: {port: }", "listen.port: expected a whole number from 0 to 65535, got nothing"),
        ("listen: {host: 127}", "listen.host: expected a string, got a number (put it in quotes)"),
        ("listen: {host: '[::1]'}", "listen.host: expected an address or a host's name, such as 127.0.0.1 or ::1"),
        (
            "listen: {host: '127.0.0.1:80'}",
            "listen.host: expected an address without its port (that is 'port')",
        ),
        (
            "listen: {host: 'a.example:80'}",
            "listen.host: expected an address without its port (that is 'port')",
        ),
        ("metrics: {enabled: 'false'}", "metrics.enabled: expected true or false, got a string"),
        ("metrics: {enabled: no}", "metrics.enabled: expected true or false, got a string"),
        ("metrics: {enabled: 1}", "metrics.enabled: expected true or false, got a number"),
        (
            "timeouts: {idle: '3'}",
            "timeouts.idle: expected a number of seconds or '500ms', '30s', '5m', got a string",
        ),
        (
            "timeouts: {idle: true}",
            "timeouts.idle: expected a number of seconds or '500ms', '30s', '5m', got true or false",
        ),
        ("timeouts: {idle: 0}", "timeouts.idle: expected a duration longer than 0 and at most 365 days"),
        ("timeouts: {idle: .nan}", "timeouts.idle: expected a duration longer than 0 and at most 365 days"),
        ("timeouts: {idle: .inf}", "timeouts.idle: expected a duration longer than 0 and at most 365 days"),
        ("streaming: {heartbeat: -1}", "streaming.heartbeat: expected a duration of at least 0 and at most 365 days"),
        ("health: {probe_timeout: 0}", "health.probe_timeout: expected a duration longer than 0 and at most 365 days"),
        ("health: {failure_threshold: 0}", "health.failure_threshold: expected a whole number of at least 1"),
        ("limits: {body: 1.5}", "limits.body: expected a number of bytes or '64KiB', '32MiB', got a number"),
        ("limits: {body: 1.5MiB}", "limits.body: expected a number of bytes or '64KiB', '32MiB', got a string"),
        ("limits: {body: 0}", "limits.body: expected a size of at least 1 byte and at most 1024GiB"),
        ("cors: {origins: abc}", "cors.origins: expected a list, got a string"),
        ("cors: {origins: ['*', 3]}", "cors.origins[1]: expected a string, got a number (put it in quotes)"),
        ("cors: {origins: [a]}", "cors.origins[0]: expected '*' or an origin such as https://chat.example.com"),
        ("log: {level: wrn}", "log.level: expected one of debug, info, warning, error (did you mean 'warning'?)"),
        ("log: {format: 3}", "log.format: expected one of auto, human, json, got a number"),
        ("default_provider: gorq", "default_provider: no provider 'gorq' (did you mean 'groq'?)"),
        ("alias_prefix: mana", "alias_prefix: expected one segment and a slash, such as 'mana/'"),
        ("default: mana/x", "default: no alias 'mana/x'"),
        ("aliases_file: a.yaml", "aliases_file: give either aliases_file, or aliases and default right here"),
        ("listen: {host: '${H}'}", "listen.host: H is not set and there is no default"),
        ("listen: {port: '${P:-abc}'}", "listen.port: expected a whole number from 0 to 65535, got a string"),
        ("listen: {port: '${P:-3}0'}", "listen.port: expected a whole number from 0 to 65535, got a string"),
    ],
)
def test_mistake_in_a_setting(mistakes: Told, text: str, wanted: str) -> None:
    """One mistake, one line: where it is, and what was expected there."""
    assert mistakes(f"{text}\n{PROVIDERS}{ALIASES}") == [wanted]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("{}", "kind: is missing"),
        ("", "kind: is missing"),
        ("{kind: opnai}", "kind: expected one of ollama, openai, google, loopback (did you mean 'openai'?)"),
        ("{kind: ollama, base_ulr: x}", "base_ulr: unknown key (did you mean 'base_url'?)"),
        ("{kind: openai}", "base_url: is missing: kind openai needs the server's address, such as https://host/v1"),
        ("{kind: loopback, base_url: 'http://x'}", "base_url: must not be given: kind loopback calls nobody"),
        ("{kind: loopback, api_key: x}", "api_key: must not be given: kind loopback calls nobody"),
        ("{kind: ollama, base_url: x}", "base_url: expected a URL with http:// or https:// and a host"),
        ("{kind: ollama, base_url: 'ftp://x'}", "base_url: expected a URL with http:// or https:// and a host"),
        ("{kind: ollama, base_url: 'http://'}", "base_url: expected a URL with http:// or https:// and a host"),
        ("{kind: ollama, base_url: 'http://x:y'}", "base_url: expected a URL such as http://127.0.0.1:11434"),
        ("{kind: ollama, base_url: 'http://u:p@x'}", "base_url: holds a user or a password; give the key as api_key"),
        (
            "{kind: ollama, base_url: 'http://x/?a=b'}",
            "base_url: expected a URL without a query ('?') and without a fragment ('#')",
        ),
        (
            "{kind: ollama, base_url: 'http://x/#v1'}",
            "base_url: expected a URL without a query ('?') and without a fragment ('#')",
        ),
        ("{kind: ollama, api_key: ''}", "api_key: is empty"),
        ("{kind: ollama, api_key: 12}", "api_key: expected a string, got a number (put it in quotes)"),
        ("{kind: ollama, api_key: 'a b'}", "api_key: is no key: a key is visible ASCII without blanks"),
        ("{kind: ollama, api_key: 'ab '}", "api_key: has a blank or a line end around it: leave that out"),
        ('{kind: ollama, api_key: "ab\\n"}', "api_key: has a blank or a line end around it: leave that out"),
        ("{kind: ollama, api_key: 'Bearer ab'}", "api_key: leave out 'Bearer', which the proxy adds itself"),
        ("{kind: ollama, api_key: 'schlüssel'}", "api_key: is no key: a key is visible ASCII without blanks"),
        ("{kind: ollama, api_key: a, api_key_file: b}", "api_key_file: give either api_key or api_key_file"),
        ("{kind: ollama, api_key_file: nothing}", "api_key_file: the file cannot be read (No such file or directory)"),
        ("{kind: ollama, api_key_file: empty}", "api_key_file: the file is empty"),
        ("{kind: ollama, headers: {'a b': x}}", "headers.a...: is no name for a header"),
        (
            "{kind: ollama, headers: {Content-Length: '1'}}",
            "headers.Content-Length: is a header that the proxy sets itself",
        ),
        (
            '{kind: ollama, headers: {X: "a\\r\\nb"}}',
            "headers.X: expected a header's value: visible ASCII and blanks, on one line",
        ),
        ("{kind: ollama, headers: [a]}", "headers: expected keys and values, got a list"),
        ("{kind: ollama, headers: {X: '${NONE}'}}", "headers.X: NONE is not set and there is no default"),
        ("{kind: ollama, base_url: '${A}${B}'}", "base_url: A and B are not set and there is no default"),
        ("{kind: ollama, timeouts: {conect: 1}}", "timeouts.conect: unknown key (did you mean 'connect'?)"),
        ("{kind: ollama, max_concurrent: 0}", "max_concurrent: expected a whole number of at least 1"),
        (
            "{kind: ollama, extra_retryable_statuses: [200]}",
            "extra_retryable_statuses[0]: expected a whole number from 400 to 599",
        ),
        ("{kind: google, api_key: x, api: native}", "api: only kind ollama has a choice of api"),
        (
            "{kind: google, api_key: x, options: {a: 1}}",
            "options: options are sent by kind ollama only, not by kind google",
        ),
        (
            "{kind: openai, base_url: 'http://x/v1', options: {force_tools: yes}}",
            "options.force_tools: knows one way: schema",
        ),
        (
            "{kind: ollama, api: openai, options: {a: 1}}",
            "options: options are not sent with 'api: openai', which relays requests as they are",
        ),
        ("{kind: ollama, options: [a]}", "options: expected keys and values, got a list"),
        ("{kind: ollama, options: {a: .nan}}", "options: expected finite numbers"),
        ("{kind: ollama, options: {a: ['${NONE}']}}", "options: NONE is not set and there is no default"),
        ("{kind: ollama, proxy: socks5://x}", "proxy: expected a URL with http:// or https:// and a host"),
    ],
)
def test_mistake_in_a_provider(mistakes: Told, tmp_path: Path, given: str, wanted: str) -> None:
    """One mistake, one line, below the provider's name."""
    (tmp_path / "empty").write_text("\n")
    assert mistakes(f"providers:\n  p: {given}\n{ALIASES}") == [f"providers.p.{wanted}"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mana", "providers.mana: a provider cannot have the aliases' own name (alias_prefix is 'mana/')"),
        ("a b", "providers.a...: a provider's name is letters, digits, '.', '_' and '-', at most 64 of them"),
        ("a/b", "providers.a/b: a provider's name is letters, digits, '.', '_' and '-', at most 64 of them"),
    ],
)
def test_name_that_no_provider_may_have(mistakes: Told, name: str, wanted: str) -> None:
    """It must be told apart from models and aliases."""
    assert mistakes(f"providers:\n  {name}: {{kind: loopback}}\n{ALIASES}") == [wanted]


SECONDS = "expected a number of seconds or '500ms', '30s', '5m'"
MODEL = "expected a model of at most 256 visible ASCII characters, without blanks"
CLASSES = "one of auth, payment, missing_model, capability, context_length, empty or a status from 400 to 499"


@pytest.mark.parametrize(
    ("alias", "wanted"),
    [
        ("{chain: [groq/a, gorq/b]}", ".chain[1]: no provider 'gorq' (did you mean 'groq'?)"),
        ("{chain: [{target: gorq/b}]}", ".chain[0]: no provider 'gorq' (did you mean 'groq'?)"),
        ("{chain: [mana/y]}", ".chain[0]: names an alias; a chain holds targets (provider/model)"),
        ("{chain: [gemma]}", ".chain[0]: expected provider/model"),
        ("{chain: [groq/]}", ".chain[0]: expected provider/model"),
        ("{chain: ['groq/a b']}", f".chain[0]: {MODEL}"),
        (f"{{chain: [groq/{'x' * 257}]}}", f".chain[0]: {MODEL}"),
        ("{chain: [3]}", ".chain[0]: expected a string, got a number (put it in quotes)"),
        ("{chain: []}", ".chain: needs at least one target"),
        ("{}", ".chain: is missing"),
        ("{chain: groq/a}", ".chain: expected a list, got a string"),
        ("[groq/a]", ": expected keys and values, got a list"),
        ("{chain: [groq/a], descripton: x}", ".descripton: unknown key (did you mean 'description'?)"),
        ("{chain: [groq/a], fallback_on: auth}", ".fallback_on: expected a list, got a string"),
        ("{chain: [groq/a], fallback_on: [auht]}", f".fallback_on[0]: expected {CLASSES} (did you mean 'auth'?)"),
        ("{chain: [groq/a], fallback_on: [500]}", f".fallback_on[0]: expected {CLASSES}"),
        ("{chain: [groq/a], fallback_on: [true]}", f".fallback_on[0]: expected {CLASSES}, got true or false"),
        ("{chain: [{}]}", ".chain[0].target: is missing"),
        ("{chain: [{targt: groq/a, target: groq/a}]}", ".chain[0].targt: unknown key (did you mean 'target'?)"),
        ("{chain: [{target: groq/a, timeouts: {idle: x}}]}", f".chain[0].timeouts.idle: {SECONDS}, got a string"),
        (
            "{chain: [{target: groq/a, options: {x: 1}}]}",
            ".chain[0].options: options are sent by kind ollama only, not by kind openai",
        ),
    ],
)
def test_mistake_in_an_alias(mistakes: Told, alias: str, wanted: str) -> None:
    """One mistake, one line, at its place in the chain."""
    assert mistakes(f"{PROVIDERS}\naliases:\n  mana/x: {alias}\n") == [f"aliases.mana/x{wanted}"]


@pytest.mark.parametrize("name", ["x", "mana/", "mana/a/b", "our/x", "'mana/a b'"])
def test_name_that_no_alias_may_have(mistakes: Told, name: str) -> None:
    """The prefix and one segment."""
    (told,) = mistakes(f"{PROVIDERS}\naliases:\n  {name}: {{chain: [groq/a]}}\n")
    assert told.endswith("an alias is 'mana/' and one segment of visible ASCII, without a slash or blanks")


def test_all_mistakes_at_once(mistakes: Told, tmp_path: Path) -> None:
    """Of both files, and one does not hide another, not even in the same provider."""
    (tmp_path / "aliases.yaml").write_text(
        "aliases: {mana/a: {chain: [groq/x, gorq/x, nothing]}, mana/b: {chain: []}}\ndefault: mana/c\nfoo: 1"
    )
    assert mistakes(
        """
        listen: {prot: 1, port: x}
        limits: {body: 3.7}
        default_provider: olama
        providers:
          ollama: {kind: ollama, options: 3, api_key_file: nothing}
          groq: {kind: openai, api_kye: x, timeouts: {idle: 0}}
        """
    ) == [
        f"{tmp_path}/aliases.yaml: foo: unknown key",
        "listen.port: expected a whole number from 0 to 65535, got a string",
        "listen.prot: unknown key (did you mean 'port'?)",
        "limits.body: expected a number of bytes or '64KiB', '32MiB', got a number",
        "providers.ollama.options: expected keys and values, got a number",
        "providers.ollama.api_key_file: the file cannot be read (No such file or directory)",
        "providers.groq.timeouts.idle: expected a duration longer than 0 and at most 365 days",
        "providers.groq.api_kye: unknown key (did you mean 'api_key'?)",
        "providers.groq.base_url: is missing: kind openai needs the server's address, such as https://host/v1",
        "aliases.mana/a.chain[1]: no provider 'gorq' (did you mean 'groq'?)",
        "aliases.mana/a.chain[2]: expected provider/model",
        "aliases.mana/b.chain: needs at least one target",
        "default_provider: no provider 'olama' (did you mean 'ollama'?)",
        "default: no alias 'mana/c' (did you mean 'mana/b'?)",
    ]


NO_VARIABLE = "line 2: a '${' that is neither ${NAME} nor ${NAME:-default} (write $${ for the characters)"
SECOND_DOCUMENT = (
    "line 2: an alias without its anchor, or a second document (text that begins with * or & needs quotes)"
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- a\n", "must hold keys and values at its top level"),
        ("hello", "must hold keys and values at its top level"),
        ("a: 1\nb: [1\n", "line 3: a ',' or the closing ']' is missing; it was opened in line 2"),
        ("a: 1\n\tb: 2\n", "line 2: a tab: YAML indents with blanks only"),
        ("a: \x07", "line 1: a character that YAML does not allow"),
        ("a: 1\n---\nb: 2\n", SECOND_DOCUMENT),
        ("[" * 500, "is nested too deeply"),
    ],
)
def test_file_that_is_no_configuration(mistakes: Told, tmp_path: Path, text: str, wanted: str) -> None:
    """The file's name, the line where there is one, and no traceback."""
    assert mistakes(text) == [f"{tmp_path}/proxy.yaml: {wanted}"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("listen:\n  port: 1\n  port: 2\n", "line 3: key 'port' is given twice"),
        ("metrics: {}\nmetrics: {}\n", "line 2: key 'metrics' is given twice"),
        ("listen:\n  host: ${}\n", NO_VARIABLE),
        ("listen:\n  host: ${A:-${B}}\n", NO_VARIABLE),
        ("listen:\n  ? [a]\n  : 1\n", "line 2: a key must be plain text"),
        ('log: {level: "\\ud800"}\n', "line 1: holds what is no text in UTF-8"),
        ('log: {"\\ud800": 1}\n', "line 1: a key must be plain text"),
        ("log: !x info\n", "line 1: has a tag that is not known here (text that begins with ! needs quotes)"),
    ],
)
def test_mistake_with_a_line(mistakes: Told, tmp_path: Path, text: str, wanted: str) -> None:
    """What YAML itself would let pass, or name badly."""
    assert mistakes(text + ALIASES)[0] == f"{tmp_path}/proxy.yaml: {wanted}"


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a folder, not text; the alias file likewise."""

    def told(path: Path) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        return caught.value.mistakes

    missing, latin, lonely = tmp_path / "missing.yaml", tmp_path / "latin.yaml", tmp_path / "lonely.yaml"
    latin.write_bytes(b"a: \xff")
    lonely.write_text(PROVIDERS)
    assert told(missing) == (f"{missing}: no such file",)
    assert told(tmp_path) == (f"{tmp_path}: cannot be read (Is a directory)",)
    assert told(latin) == (f"{latin}: is not UTF-8 text",)
    more = "aliases_file names another one, and aliases may stand in proxy.yaml itself"
    assert told(lonely) == (f"{tmp_path}/aliases.yaml: no such file; {more}",)


def test_what_would_keep_its_reader_is_a_mistake(tmp_path: Path) -> None:
    """A pipe that nobody writes to, what is too long, and anchors that stand for billions of values."""

    def told(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        return " ".join(caught.value.mistakes)

    fifo, long, deep, own = (tmp_path / name for name in ("fifo.yaml", "long.yaml", "deep.yaml", "own.yaml"))
    os.mkfifo(fifo)
    long.write_bytes(b"#" * (2**20 + 1))
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]" for n in range(1, 12))]
    deep.write_text("\n".join(lines))
    own.write_text("a: &a [*a]")
    assert "no regular file" in told(fifo) and "no regular file" in told(Path("/dev/zero"))
    assert "over 1 MiB" in told(long)
    assert "line 6: anchors that make more than 100000 values" in told(deep)
    assert "anchors that make more" in told(own)


# Who may reach it


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),  # refused, that is the point
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_loopback(host: str, wanted: bool) -> None:
    """127.0.0.0/8, ::1 and localhost are this machine; nothing else is taken for it."""
    assert is_loopback(host) is wanted


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("listen: {host: 0.0.0.0}", True),
        ("listen: {host: 0.0.0.0}\nauth: {open: true}", False),
        ("listen: {host: 0.0.0.0, unix: /run/x}", False),
        ("listen: {host: '::1'}", False),
        (f"listen: {{host: 0.0.0.0}}\nauth: {{keys: [{{name: a, sha256: {DIGEST}}}]}}", False),
        ("listen: {host: 0.0.0.0}\nauth: {keys: []}", True),
    ],
)
def test_open_to_others_only_where_it_is_meant(mistakes: Told, text: str, refused: bool) -> None:
    """Without keys it starts on loopback or a unix socket, unless auth.open says that it is meant."""
    told = mistakes(f"{text}\n{ALIASES}")
    assert [line.partition(": ")[0] for line in told] == (["listen.host"] if refused else [])
    ways = ("auth.keys", "manallm-proxy hash-key", "127.0.0.1", "unix socket", "auth.open: true")
    assert all(way in line for line in told for way in ways)


def test_command_line_wins_before_the_check(tmp_path: Path) -> None:
    """--host can close what the file opens, and cannot open what it closes; it wins over unix too."""
    path = tmp_path / "proxy.yaml"
    path.write_text("listen: {host: 0.0.0.0}\naliases: {}")
    assert load(path, {}, host="127.0.0.1", port=0).listen.port == 0
    path.write_text("listen: {unix: /run/x}\naliases: {}")
    assert load(path, {}, port=1).listen.unix is None
    with pytest.raises(ConfigError):
        load(path, {}, host="0.0.0.0")  # refused, that is the point


def test_exposure_of_a_host_given_later(loaded: Load) -> None:
    """The same question for an address that is not in the file."""
    closed, opened = loaded(ALIASES), loaded(f"auth: {{open: true}}\n{ALIASES}")
    assert exposure_mistake(closed, "127.0.0.1") is None
    assert exposure_mistake(closed, "10.0.0.1") is not None
    assert exposure_mistake(opened, "10.0.0.1") is None


def test_a_client_key_and_what_it_may_by_default(loaded: Load) -> None:
    """Every model, as often as it likes, and nothing that is for operators."""
    (key,) = loaded(f"auth: {{keys: [{{name: a, sha256: {DIGEST}}}]}}\n{ALIASES}").auth.keys
    assert key == ClientKey("a", DIGEST, ("*",), None, None, False)
    assert DIGEST not in repr(key)


def test_a_client_key_with_all_it_can_have(loaded: Load) -> None:
    """A digest may come from a variable, in either case; models may be none."""
    config = loaded(
        """
        auth:
          keys:
            - name: team-1.a_b
              sha256: ${DIGEST}
              models: ["mana/*", mana/x, ollama/*, "*/m", ollama/llama3]
              requests_per_minute: 60
              concurrent_requests: 4
              admin: true
            - {name: b, sha256: "%s", models: []}
        providers: {ollama: {kind: ollama}}
        aliases: {mana/x: {chain: [ollama/m]}}
        """
        % ("0" * 64),
        DIGEST=DIGEST.upper(),
    )
    first, second = config.auth.keys
    assert (first.sha256.lower(), first.requests_per_minute, first.concurrent_requests) == (DIGEST, 60, 4)
    assert (first.models[1], first.admin, second.models, second.admin) == ("mana/x", True, (), False)


HEX = "expected 64 hex digits: the key's SHA-256, as 'manallm-proxy hash-key' makes it"
PATTERN = "expected an alias or provider/model, in which '*' stands for any text"


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("{sha256: $}", "[0].name: is missing"),
        ("{name: a}", "[0].sha256: is missing"),
        ("{name: '', sha256: $}", "[0].name: expected at most 64 letters, digits, '.', '_' and '-'"),
        ("{name: 'a b', sha256: $}", "[0].name: expected at most 64 letters, digits, '.', '_' and '-'"),
        ("{name: a, sha256: sk-verysecret}", f"[0].sha256: {HEX}"),
        ("{name: a, sha256: '$0'}", f"[0].sha256: {HEX}"),
        ("{name: a, sha256: '${HASH}'}", "[0].sha256: HASH is not set and there is no default"),
        (
            "{name: a, key: sk-verysecret, sha256: $}",
            "[0].key: keys are not written here: run 'manallm-proxy hash-key'",
        ),
        ("{name: a, sha256: $, models: mana/x}", "[0].models: expected a list, got a string"),
        ("{name: a, sha256: $, models:}", "[0].models: expected a list, got nothing"),
        ("{name: a, sha256: $, models: ['']}", f"[0].models[0]: {PATTERN}"),
        ("{name: a, sha256: $, models: ['*', 'a b']}", f"[0].models[1]: {PATTERN}"),
        ("{name: a, sha256: $, models: ['gemma3:4b']}", f"[0].models[0]: {PATTERN}"),
        ("{name: a, sha256: $, models: [mana/xx]}", "[0].models[0]: no alias 'mana/xx' (did you mean 'mana/x'?)"),
        ("{name: a, sha256: $, models: [gorq/*]}", "[0].models[0]: no provider 'gorq' (did you mean 'groq'?)"),
        ("{name: a, sha256: $, requests_per_minute: 0}", "[0].requests_per_minute: expected a whole number from 1 to"),
        ("{name: a, sha256: $, requests_per_minute: '9'}", "[0].requests_per_minute: expected a whole number from 1"),
        ("{name: a, sha256: $, requests_per_minute: 60001}", "[0].requests_per_minute: expected a whole number from"),
        ("{name: a, sha256: $, concurrent_requests: 0}", "[0].concurrent_requests: expected a whole number of at"),
        ("{name: a, sha256: $, admin: 'yes'}", "[0].admin: expected true or false, got a string"),
        ("{name: b, sha256: $}, {name: b, sha256: '%s'}" % ("0" * 64), "[1].name: is auth.keys[0]'s already"),
        ("{name: b, sha256: $}, {name: c, sha256: $U}", "[1].sha256: is auth.keys[0]'s already"),
        ("sk-verysecret", "[0]: expected keys and values, got a string"),
    ],
)
def test_mistake_in_a_client_key(mistakes: Told, key: str, wanted: str) -> None:
    """One mistake, its place, what to do; a key that was put there by mistake is not shown."""
    given = key.replace("$U", DIGEST.upper()).replace("${", "#{").replace("$", DIGEST).replace("#{", "${")
    (told,) = mistakes(
        f"listen: {{host: 0.0.0.0}}\nauth: {{keys: [{given}]}}\n"
        "providers: {groq: {kind: openai, base_url: 'http://x'}}\naliases: {mana/x: {chain: [groq/m]}}"
    )
    assert told.startswith(f"auth.keys{wanted}")
    assert "verysecret" not in told


@pytest.mark.parametrize("keys", ["null", "{a: b}", "x"])
def test_keys_are_a_list(mistakes: Told, keys: str) -> None:
    """Also where all of them are commented out: nobody should be let in by a comment sign."""
    (told,) = mistakes(f"auth: {{keys: {keys}}}\n{ALIASES}")
    assert told.startswith("auth.keys: expected a list, got ")


def test_either_keys_or_open(mistakes: Told) -> None:
    """With both it is not clear whether a key is needed; the stricter guess would lock people out, the other let in."""
    (told,) = mistakes(f"auth: {{open: true, keys: [{{name: a, sha256: {DIGEST}}}]}}\n{ALIASES}")
    assert told.startswith("auth.open: give either keys, or 'open: true'")


def test_a_mistake_elsewhere_makes_none_in_keys(mistakes: Told) -> None:
    """An alias or a provider with a mistake of its own is still one that a key may name."""
    told = mistakes(
        f"auth: {{keys: [{{name: a, sha256: {DIGEST}, models: [mana/x, p/m]}}]}}\n"
        "providers: {p: {kind: openai}}\naliases: {mana/x: {chain: []}}"
    )
    assert [line.partition(": ")[0] for line in told] == ["providers.p.base_url", "aliases.mana/x.chain"]
    (alone,) = mistakes(f"auth: {{keys: [{{name: a, sha256: {DIGEST}, models: [mana/x]}}]}}\naliases_file: gone.yaml")
    assert "gone.yaml: no such file" in alone


# Secrets


def test_repr_shows_no_secret(loaded: Load) -> None:
    """Whatever logs a configuration logs no key."""
    config = loaded(
        f"""
        providers:
          p: {{kind: openai, base_url: "http://x", api_key: {SECRET}, headers: {{X-Key: {SECRET}}},
               proxy: "http://u:{SECRET}@x"}}
        aliases: {{}}
        """
    )
    assert config.providers["p"].api_key == SECRET
    assert SECRET not in repr(config)


@pytest.mark.parametrize(
    "text",
    [
        "providers: {p: {kind: ollama, api_key: %s é}}",
        "providers: {p: {kind: ollama, api_key: [%s]}}",
        "providers: {p: {kind: ollama, api_key: *%s}}",
        "providers: {p: {kind: ollama, api_key: !%s}}",
        "providers: {p: {kind: ollama, api_key: !a!%s x}}",
        "providers: {p: {kind: ollama, api_key: '%s}}",
        "providers: {p: {kind: ollama, api_key:%s}}",
        "providers: {p: {kind: ollama, api_key: x, base_url: 'http://u:%s@x'}}",
        "providers: {p: {kind: ollama, base_url: 'http://x?key=%s'}}",
        "providers: {p: {kind: ollama, base_url: 'http://[%s'}}",
        "providers: {p: {kind: ollama, proxy: 'socks5://u:%s@x'}}",
        'providers: {p: {kind: ollama, headers: {X: "%s\\n"}}}',
        "providers: {p: {kind: ollama, headers: '%s'}}",
        "providers: {p: {kind: %s}}",
        "providers: {p: %s}",
        "providers: %s",
        "auth: {keys: [{name: a, sha256: %s}]}",
        "auth: {keys: [{name: a, %s: 1}]}",
        "auth: {%s: 1}",
        "providers: {p: {kind: ollama, %s: 1}}",
        "providers: {%s: 1}",
        "default_provider: %s",
        "default: %s",
        "warm: [%s/m]",
        "{%s: 1, %s: 2}",
        "auth: {keys: [{name: %s é}]}",
        "auth: {keys: [{name: a, models: [%s]}]}",
        "auth: {keys: [{name: a, models: ['%s é']}]}",
        "auth: {keys: [%s]}",
        "auth: {keys: %s}",
        "log: {level: %s}",
        "limits: {body: %s, drain: %s}",
        "listen: {port: '${KEY}', host: '${KEY} '}",
    ],
)
def test_message_shows_no_secret(loaded: Load, text: str) -> None:
    """Whatever is wrong with a value, and wherever a key was put by mistake: neither message nor cause shows it."""
    with pytest.raises(ConfigError) as caught:
        loaded(f"{text.replace('%s', SECRET)}\n{ALIASES}", KEY=SECRET)
    assert "verysecret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_key_file_with_rubbish_is_not_shown(mistakes: Told, tmp_path: Path) -> None:
    """Not even a part of it."""
    (tmp_path / "k").write_bytes(SECRET.encode() + b" \xff")
    (tmp_path / "l").write_text(f"{SECRET} {SECRET}")
    told = mistakes("providers: {a: {kind: ollama, api_key_file: k}, b: {kind: ollama, api_key_file: l}}\naliases: {}")
    assert told == [
        "providers.a.api_key_file: the file is not text",
        "providers.b.api_key_file: the file is no key: a key is visible ASCII without blanks",
    ]


# Finding it


def test_a_place_that_may_not_be_looked_at_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As /etc/manallm is to most users (0750). Reading it says why it cannot be, and nothing is served in its place.

    A name that is too long stands for it here, since nothing is closed to root.
    """
    closed = f"/{'x' * 300}/proxy.yaml"
    monkeypatch.setattr("manallm_proxy.config.load.PLACES", ("nowhere/proxy.yaml", closed))
    assert find({}) == find({"MANALLM_CONFIG": closed}) == Path(closed)
    with pytest.raises(ConfigError, match=r"proxy\.yaml: cannot be read \(File name too long\)"):
        load(Path(closed), {})


def test_find_takes_the_first_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--config, $MANALLM_CONFIG, ./config/proxy.yaml; else all places are named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("manallm_proxy.config.load.PLACES", ("config/proxy.yaml", "etc/proxy.yaml"))
    with pytest.raises(ConfigError, match=r"looked for config/proxy\.yaml, etc/proxy\.yaml"):
        find({"MANALLM_CONFIG": ""})
    for place in ("etc", "config"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "proxy.yaml").touch()
        assert find({}) == Path(place, "proxy.yaml")
    (tmp_path / "mine.yaml").touch()
    assert find({"MANALLM_CONFIG": "mine.yaml"}) == Path("mine.yaml")
    assert find({"MANALLM_CONFIG": "mine.yaml"}, "other.yaml") == Path("other.yaml")


# Whatever comes


_WORDS = st.sampled_from(
    [
        *(
            "listen",
            "limits",
            "health",
            "timeouts",
            "streaming",
            "metrics",
            "log",
            "cors",
            "auth",
            "providers",
            "aliases",
        ),
        *("keys", "name", "sha256", "models", "admin", "1f" * 32, "mana/*"),
        *("default", "default_provider", "alias_prefix", "aliases_file", "kind", "ollama", "openai", "chain", "target"),
        *(
            "options",
            "headers",
            "api_key",
            "base_url",
            "mana/x",
            "ollama/m",
            "${X}",
            "${X:-3}",
            "http://x",
            "30s",
            "port",
        ),
    ]
)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | _WORDS
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS | _SCALARS, inner, max_size=5),
    max_leaves=30,
)


def _told(path: Path) -> list[str]:
    """The mistakes of a file, empty where it loads; any other exception passes."""
    try:
        load(path, {})
    except ConfigError as error:
        return list(error.mistakes) or [""]
    return []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=st.dictionaries(_WORDS, _TREES, max_size=6) | _TREES, beside=_TREES)
def test_any_document_loads_or_tells_its_mistakes(tmp_path: Path, document: Any, beside: Any) -> None:
    """Whatever YAML holds, the answer is a Config or a ConfigError."""
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "aliases.yaml").write_text(yaml.safe_dump(beside))
    told = _told(tmp_path / "proxy.yaml")
    assert all(mistake and "\n" not in mistake for mistake in told)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="ab:-[]{}&*!|>'\"%@`#,? \n\t<$~.0x1e", max_size=60) | st.binary(max_size=60))
def test_any_bytes_load_or_tell_their_mistakes(tmp_path: Path, text: str | bytes) -> None:
    """Not even YAML: still nothing but ConfigError."""
    (tmp_path / "proxy.yaml").write_bytes(text.encode() if isinstance(text, str) else b"aliases: " + text)
    assert _told(tmp_path / "proxy.yaml") != [""]


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {b: *a}",
        "providers: &a {x: *a}",
        "providers: {p: {kind: ollama, options: &a {b: *a}}}",
        "a: &a {<<: *a}",
        "a: !!int abc",
        "a: !!timestamp x",
        "a: !!binary x",
        "!!set {a}",
        "!!str {a: b}",
        "!!map abc",
        "!!seq {a: b}",
        "{[a]: b}",
        "<<: 3",
        "port: 1" + "0" * 5000,
        "timeouts: {idle: 1" + "0" * 400 + "}",
        "timeouts: {idle: 1" + "0" * 400 + "s}",
    ],
)
def test_odd_documents(mistakes: Told, text: str) -> None:
    """Anchors that hold themselves, tags on the wrong values, numbers without end."""
    assert mistakes(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Told as what it is: here a folder, since root reads every file."""
    path = tmp_path / "proxy.yaml"
    path.mkdir()
    with pytest.raises(ConfigError, match=r"(?i)directory"):
        load(path, {})
