"""``check``: all mistakes of the configuration at once; ``--live`` asks the providers as well."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from manallm_proxy.config import Config, find, load
from manallm_proxy.errors import ProviderError
from manallm_proxy.snapshot import Snapshot


def check(config_file: str | None, live: bool, environ: Mapping[str, str]) -> int:
    """0 where all is well, 1 where ``--live`` found a model that its provider does not have."""
    config = load(find(environ, config_file), environ)
    if live:
        return asyncio.run(_live(config))
    print(f"{config.path}: fine ({len(config.providers)} providers, {len(config.aliases)} aliases)")
    return 0


async def _live(config: Config) -> int:
    snapshot = Snapshot.build(config, asyncio.get_running_loop().time, lambda event: None)
    silent = dict(await asyncio.gather(*(_ask(snapshot, name) for name in config.providers)))
    missing = 0
    for alias, chain in config.aliases.items():
        for place, entry in enumerate(chain):
            provider = entry.target.provider
            known = snapshot.catalog.find(entry.target) is not None
            if silent[provider] or known or not snapshot.catalog.knows(provider):
                continue
            missing += 1
            print(f"aliases.{alias}.chain[{place}]: {provider} does not list a model '{entry.target.model}'")
    for provider, why in silent.items():
        print(f"providers.{provider}: {why or 'alive'}")
    await snapshot.close()
    return 1 if missing else 0


async def _ask(snapshot: Snapshot, name: str) -> tuple[str, str | None]:
    """The provider's name, and why it could not be asked; None where it answered."""
    upstream = snapshot.upstreams.get(name)
    if upstream is None:
        return name, f"unconfigured: {snapshot.config.providers[name].api_key_missing}"
    try:
        async with asyncio.timeout(snapshot.config.health.probe_timeout):
            models = await upstream.probe()
    except TimeoutError:
        return name, "no answer in time"
    except ProviderError as error:
        return name, error.message
    if models is None:
        return name, "not probed"
    snapshot.catalog.learn(name, models)
    return name, None
