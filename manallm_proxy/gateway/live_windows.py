"""For ``check --live``: finds two names of the same weights that are configured with different windows.

A tag made by ``ollama cp`` or ``ollama create`` is another name for the same blob, and one runner serves all its
names: used under two of them with two windows, it loads the weights again at each change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from manallm_proxy.config.model import Config
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.targets import LOADED_WITH, Entry, Target, ollama_name
from manallm_proxy.gateway.opening import address_of
from manallm_proxy.providers.ollama.host import OllamaHost


async def windows_of_one_blob(config: Config, seconds: float) -> list[str]:
    """A line for each entry that would reload weights which another entry has loaded under another name.

    Each server has `seconds` to answer; one that does not is left out.
    """
    entries = [
        (f"aliases.{alias}.{place}", entry)
        for alias, chain in config.aliases.items()
        for place, entry in zip(chain.paths(), chain, strict=True)
        if config.providers[entry.target.provider].kind == "ollama"
    ]
    targets = sorted({entry.target for _, entry in entries}, key=str)
    blobs = dict(zip(targets, await asyncio.gather(*(_blob(config, each, seconds) for each in targets)), strict=True))
    first: dict[tuple[str, str], Entry] = {}
    lines: list[str] = []
    for path, entry in entries:
        blob = blobs[entry.target]
        if blob is not None:
            one = first.setdefault((config.providers[entry.target.provider].base_url or "", blob), entry)
            if ollama_name(one.target.model) != ollama_name(entry.target.model):
                lines += [f"{path}.options.{what}" for what in _differing(entry, one)]
    return lines


def _differing(entry: Entry, first: Entry) -> Iterator[str]:
    for name in LOADED_WITH:
        here, there = entry.options.get(name), first.options.get(name)
        if here != there:
            yield (
                f"{name}: {_shown(here)} for {entry.target} and {_shown(there)} for {first.target}, "
                "which are two names of the same weights: they would be loaded anew in turns"
            )


def _shown(value: object) -> str:
    return "the model's own" if value is None else str(value)


async def _blob(config: Config, target: Target, seconds: float) -> str | None:
    """The digest of the weights that a name stands for; None if the server does not report it."""
    provider = config.providers[target.provider]
    if not provider.configured:
        return None
    host = OllamaHost(address_of(provider))
    try:
        return await host.blob(target.model, seconds)
    except ProviderError:
        return None
    finally:
        await host.close()
