"""``check``: all mistakes of the configuration at once; ``--live`` asks the providers as well."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from manallm_proxy.chain import Chain, Entry
from manallm_proxy.config import Config, find, load
from manallm_proxy.errors import ProviderError, ProxyError
from manallm_proxy.schema import Head, vector_length
from manallm_proxy.snapshot import Snapshot
from manallm_proxy.upstream import Call, Endpoint


def check(config_file: str | None, live: bool, environ: Mapping[str, str]) -> int:
    """0 where all is well, 1 where ``--live`` found a model that is missing, or vectors of different length."""
    config = load(find(environ, config_file), environ)
    if live:
        return asyncio.run(_live(config))
    for provider in config.providers.values():
        if not provider.verify_tls:
            print(f"providers.{provider.name}: its certificate is not verified (verify_tls: false)")
    print(f"{config.path}: fine ({len(config.providers)} providers, {len(config.aliases)} aliases)")
    return 0


async def _live(config: Config) -> int:
    snapshot = Snapshot.build(config, asyncio.get_running_loop().time, lambda event: None)
    silent = dict(await asyncio.gather(*(_ask(snapshot, name) for name in config.providers)))
    missing = _missing(snapshot, silent)
    differing = [line for alias, chain in config.aliases.items() if (line := await _dimensions(snapshot, alias, chain))]
    for line in [*missing, *differing]:
        print(line)
    for provider, why in silent.items():
        print(f"providers.{provider}: {why or 'alive'}")
    await snapshot.close()
    return 1 if missing or differing else 0


def _missing(snapshot: Snapshot, silent: dict[str, str | None]) -> list[str]:
    """Chain entries whose provider answered and does not list their model."""
    return [
        f"aliases.{alias}.chain[{place}]: {entry.target.provider} does not list a model '{entry.target.model}'"
        for alias, chain in snapshot.config.aliases.items()
        for place, entry in enumerate(chain)
        if not silent[entry.target.provider]
        and snapshot.catalog.knows(entry.target.provider)
        and snapshot.catalog.find(entry.target) is None
    ]


async def _dimensions(snapshot: Snapshot, alias: str, chain: Chain) -> str | None:
    """One embedding of each target of an alias that is for embeddings; what differs in length, else None."""
    if len(chain) < 2 or not ("embed" in alias or any(_embeds(snapshot, entry) for entry in chain)):
        return None
    body = b'{"input":["dimensions"]}'
    call = Call(Endpoint.EMBEDDINGS, Head.read(body, ("input", list)), body, "check")
    lengths: dict[str, int] = {}
    for entry in chain:
        upstream = snapshot.upstreams.get(entry.target.provider)
        with contextlib.suppress(ProxyError):
            if upstream is not None:
                length = vector_length((await upstream.complete(call, entry)).body)
                lengths |= {str(entry.target): length} if length else {}
    if len(set(lengths.values())) < 2:
        return None
    told = ", ".join(f"{target} gives {length}" for target, length in lengths.items())
    return f"aliases.{alias}.chain: vectors of different length cannot be compared: {told}"


def _embeds(snapshot: Snapshot, entry: Entry) -> bool:
    listed = snapshot.catalog.find(entry.target)
    return listed is not None and "completion" not in (listed.capabilities or {"completion"})


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
