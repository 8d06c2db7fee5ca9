"""``check``: reports all mistakes of the configuration at once; ``--live`` queries the providers as well."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import urlsplit

from manallm_proxy.config.load import find, load
from manallm_proxy.config.loopback import is_loopback
from manallm_proxy.config.model import Config, ProviderConfig
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import Call, Endpoint, ModelList
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.records import frozen
from manallm_proxy.contract.targets import Chain, Entry
from manallm_proxy.gateway.advice import UNREACHED, listed, unreached
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.live_windows import windows_of_one_blob
from manallm_proxy.gateway.opening import list_live, try_open
from manallm_proxy.openai.request import read_summary
from manallm_proxy.routing.best_model import needs_of

_FORWARD_PROXIES: Final = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
State = Literal["alive", "unasked", "away", "wrong"]


@frozen
class Verdict:
    """The state of one provider. ``away``: unreachable; ``wrong``: the server there is not what is configured."""

    state: State
    text: str


def check(
    config_file: str | None,
    live: bool,
    environ: Mapping[str, str],
    *,
    host: str | None = None,
    port: int | None = None,
    offline_ok: bool = False,
    credentials: str | None = None,
) -> int:
    """Returns 0 if all is well, 1 if ``--live`` finds what would not work. Raises ConfigError.

    `host`, `port`: what `serve` will be given. `offline_ok`: a provider that cannot be reached is accepted.
    `credentials`: a folder with keys, as systemd has it.
    """
    if credentials is not None:
        if not os.path.isdir(credentials):
            raise ConfigError([f"--credentials: {credentials} is no folder"])
        environ = {**environ, "CREDENTIALS_DIRECTORY": credentials}
    config = load(find(environ, config_file), environ, host, port)
    asyncio.run(try_open(config))
    for note in config.notes:
        print(note)
    if live:
        return asyncio.run(_live(config, offline_ok, environ))
    for provider in config.providers.values():
        if not provider.verify_tls:
            print(f"providers.{provider.name}: its certificate is not verified (verify_tls: false)")
    providers, aliases = len(config.providers), len(config.aliases)
    each = f"{providers} provider{'s'[: providers != 1]}, {aliases} alias{'es'[: 2 * (aliases != 1)]}"
    print(f"{config.path}: fine ({each})")
    return 0


async def _live(config: Config, offline_ok: bool, environ: Mapping[str, str]) -> int:
    generation = Generation.build(config, asyncio.get_running_loop().time, lambda event: None)
    found = await asyncio.gather(*(_ask(generation, name) for name in config.providers))
    verdicts = dict(zip(config.providers, found, strict=True))
    missing = _missing(generation, verdicts)
    differing = [
        line for alias, chain in config.aliases.items() if (line := await _dimensions(generation, alias, chain))
    ]
    windows = await windows_of_one_blob(config, config.health.probe_timeout)
    for line in [*missing, *differing, *windows]:
        print(line)
    for provider, verdict in verdicts.items():
        print(f"providers.{provider}: {verdict.text}{_forward_proxy(config.providers[provider], verdict, environ)}")
    if (shared := await _ask_state(generation)) is not None:
        print(f"state: {shared.text}")
        found.append(shared)
    await generation.close()
    wrong = any(verdict.state == "wrong" or (verdict.state == "away" and not offline_ok) for verdict in found)
    return 1 if missing or differing or windows or wrong else 0


def _missing(generation: Generation, verdicts: Mapping[str, Verdict]) -> list[str]:
    """A line for each chain entry, and each model to keep loaded, whose provider answers but does not list it, or lists
    it with a smaller window."""
    config = generation.config
    places = [
        (f"aliases.{alias}.{place}", entry)
        for alias, chain in config.aliases.items()
        for place, entry in zip(chain.paths(), generation.catalog.filled(chain, needs_of(alias)), strict=True)
    ]
    places += [(f"warm[{n}]", entry) for n, entry in enumerate(config.warm)]
    lines = []
    for path, entry in places:
        provider = entry.target.provider
        if verdicts[provider].state != "alive":
            continue
        if entry.target.is_open:
            lines.append(f"{path}: {provider} has no model for this entry: {entry.unfilled}")
        elif config.providers[provider].kind == "loopback":
            continue  # which serves every name
        elif generation.catalog.knows(provider) and generation.catalog.find(entry.target) is None:
            has = listed(generation, provider)
            lines.append(f"{path}: {provider} does not list a model '{entry.target.model}'; it has {has}")
        elif most := _too_large(generation, entry):
            lines.append(f"{path}.options.num_ctx: {most}")
    return lines


def _too_large(generation: Generation, entry: Entry) -> str | None:
    """A line if the configured window is larger than the model's; else None."""
    asked, listed = entry.options.get("num_ctx"), generation.catalog.find(entry.target)
    if not isinstance(asked, int) or listed is None or not 0 < listed.context_length < asked:
        return None
    return f"{asked} tokens are more than {entry.target} can read, which has {listed.context_length}"


async def _dimensions(generation: Generation, alias: str, chain: Chain) -> str | None:
    """Requests one embedding from each target of an alias for embeddings. Returns a line if their lengths differ."""
    if len(chain) < 2 or not ("embed" in alias or any(_embeds(generation, entry) for entry in chain)):
        return None
    body = b'{"input":["dimensions"]}'
    call = Call(Endpoint.EMBEDDINGS, read_summary(body, ("input", list)), body, "check")
    lengths: dict[str, int] = {}
    for entry in chain:
        provider = generation.providers.get(entry.target.provider)
        with contextlib.suppress(ProxyError):
            if provider is not None:
                length = (await provider.complete(call, entry)).dimensions
                lengths |= {str(entry.target): length} if length else {}
    if len(set(lengths.values())) < 2:
        return None
    given = ", ".join(f"{target} gives {length}" for target, length in lengths.items())
    return f"aliases.{alias}.chain: vectors of different length cannot be compared: {given}"


def _embeds(generation: Generation, entry: Entry) -> bool:
    listed = generation.catalog.find(entry.target)
    return listed is not None and "completion" not in (listed.capabilities or {"completion"})


def _forward_proxy(config: ProviderConfig, verdict: Verdict, environ: Mapping[str, str]) -> str:
    """A remark on a provider that is away, if other programs would reach it through a forward proxy; else empty."""
    parts = urlsplit(config.base_url or "https://generativelanguage.googleapis.com")
    name = next((each for each in _FORWARD_PROXIES if environ.get(each)), None)
    if verdict.state != "away" or config.proxy is not None or name is None:
        return ""
    if parts.scheme != "https" or is_loopback(parts.hostname or ""):
        return ""
    return f" ({name} of the environment is not read: a forward proxy is the provider's `proxy`)"


async def _ask_state(generation: Generation) -> Verdict | None:
    """The verdict on the server through which instances share state, if there is one."""
    link = generation.answers.link
    if link is None:
        return None
    why = await link.why_down(generation.config.health.probe_timeout)
    if why is None:
        return Verdict("alive", f"{link.name}: alive")
    return Verdict("away", f"{link.name}: {why}; until it is there, nothing is shared")


async def _ask(generation: Generation, name: str) -> Verdict:
    """The verdict on one provider."""
    config = generation.config.providers[name]
    provider = generation.providers.get(name)
    if provider is None:
        return Verdict("unasked", f"unconfigured: {config.api_key_missing}")
    seconds = generation.config.health.probe_timeout
    try:
        answer = await provider.probe(seconds)
        if answer is None:
            answer = await list_live(config, seconds)
    except ProviderError as error:
        if error.error_type in UNREACHED:
            return Verdict("away", unreached(config, error.error_type, error.detail))
        return Verdict("away", error.message.removeprefix(f"{name}: "))
    if answer is None:
        return Verdict("unasked", "not probed")
    generation.catalog.learn(name, answer.models)
    return judged(config, answer)


def judged(config: ProviderConfig, answer: ModelList) -> Verdict:
    """Whether the server speaks the protocol, and if not, how to fix that. Any web server answers something."""
    where = config.base_url or f"kind {config.kind}"
    if answer.status in (401, 403):
        what = "refuses its key" if config.api_key else "wants a key (api_key)"
        return Verdict("wrong", f"{where} answers, but {what} ({answer.status})")
    if answer.status == 429:
        return Verdict("alive", "alive, and too busy to list its models (429)")
    if answer.status != 200:
        return Verdict("wrong", f"{where} answers {answer.status} instead of a list of models: {_mend(config)}")
    if answer.fault is not None and not answer.models:
        return Verdict("wrong", f"{where} answers, but {answer.fault}: {_mend(config)}")
    return Verdict("alive", f"alive, but of its list: {answer.fault}" if answer.fault else "alive")


def _mend(config: ProviderConfig) -> str:
    """A hint at the most likely mistake in the address."""
    url = config.base_url or ""
    if config.kind == "ollama" and config.api == "native":
        return "is that Ollama? For an OpenAI-compatible server it is kind: openai"
    path = urlsplit(url).path
    if not path:
        return f"base_url should most likely be {url}/v1"
    if path.endswith("/v1/v1"):
        return f"base_url should most likely be {url.removesuffix('/v1')}"
    return "is that an OpenAI-compatible server? base_url is what stands before /chat/completions and /models"
