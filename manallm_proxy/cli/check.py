"""``check``: reports all mistakes of the configuration at once; ``--live`` queries the providers as well."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from manallm_proxy.config.load import find, load
from manallm_proxy.config.model import Config
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.targets import Chain, Entry
from manallm_proxy.gateway.generation import Generation, list_live, try_open
from manallm_proxy.openai.request import read_summary


def check(config_file: str | None, live: bool, environ: Mapping[str, str]) -> int:
    """Returns 0 if all is well, 1 if ``--live`` finds a missing model or vectors of different length.

    Raises ConfigError if the configuration is invalid.
    """
    config = load(find(environ, config_file), environ)
    asyncio.run(try_open(config))
    if live:
        return asyncio.run(_live(config))
    for provider in config.providers.values():
        if not provider.verify_tls:
            print(f"providers.{provider.name}: its certificate is not verified (verify_tls: false)")
    print(f"{config.path}: fine ({len(config.providers)} providers, {len(config.aliases)} aliases)")
    return 0


async def _live(config: Config) -> int:
    generation = Generation.build(config, asyncio.get_running_loop().time, lambda event: None)
    silent = dict(await asyncio.gather(*(_ask(generation, name) for name in config.providers)))
    missing = _missing(generation, silent)
    differing = [
        line for alias, chain in config.aliases.items() if (line := await _dimensions(generation, alias, chain))
    ]
    for line in [*missing, *differing]:
        print(line)
    for provider, why in silent.items():
        print(f"providers.{provider}: {why or 'alive'}")
    await generation.close()
    return 1 if missing or differing else 0


def _missing(generation: Generation, silent: dict[str, str | None]) -> list[str]:
    """A line for each chain entry whose provider answers but does not list the model."""
    return [
        f"aliases.{alias}.chain[{place}]: {entry.target.provider} does not list a model '{entry.target.model}'"
        for alias, chain in generation.config.aliases.items()
        for place, entry in enumerate(chain)
        if not silent[entry.target.provider]
        and generation.catalog.knows(entry.target.provider)
        and generation.catalog.find(entry.target) is None
    ]


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


async def _ask(generation: Generation, name: str) -> tuple[str, str | None]:
    """Probes a provider. Returns its name, and why it could not be reached; None if it answered."""
    provider = generation.providers.get(name)
    if provider is None:
        return name, f"unconfigured: {generation.config.providers[name].api_key_missing}"
    seconds = generation.config.health.probe_timeout
    try:
        listed = await provider.probe(seconds)
        if listed is None:
            listed = await list_live(generation.config.providers[name], seconds)
    except ProviderError as error:
        return name, error.message
    if listed is None:
        return name, "not probed"
    generation.catalog.learn(name, listed.models)
    return name, None
