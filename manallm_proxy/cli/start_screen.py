"""The text that `serve` prints for a person once it listens: providers, the target for each alias, what to try."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from typing import Final

from manallm_proxy.cli.client import colours
from manallm_proxy.contract.targets import Chain, Entry
from manallm_proxy.gateway.advice import keys_not_set, listed, missing, preferred_model, unreached
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.process.app import App
from manallm_proxy.routing.best_model import needs_of

WIDTH: Final = 79
_DIM: Final = "\033[2m{}\033[0m"


def start_screen(app: App) -> str:
    """The whole text. Lines fit 80 columns, except for the one to copy."""
    generation = app.gateway.generation
    dim = colours(os.environ)
    lines = ["manallm-proxy is ready.", "", "Providers:", *_providers(generation)]
    if os.geteuid() == 0:
        lines.insert(1, "It runs as root, which it has no need of: a user of its own is safer.")
    lines += ["", "Aliases, and who would answer now:"]
    for name, chain in generation.config.aliases.items():
        lines += _alias(generation, name, chain, dim)
    if app.addresses[0].startswith("http"):
        lines += ["", f"In a browser:  {_from_here(app.addresses[0])}/"]
    lines += ["", "Try:", f"  {try_line(generation, app.addresses[0])}", ""]
    return "\n".join(lines)


def _providers(generation: Generation) -> Iterator[str]:
    now = generation.registry.clock()
    for name, health in generation.registry.providers.items():
        provider = generation.config.providers[name]
        if not provider.configured:
            continue
        if health.provider.failures:
            what = f"down: {unreached(provider, health.provider.last_error, health.reach_detail)}"
        else:
            models = listed(generation, name)
            what = health.status(now) + (f": {models}" if models else "")
            # a wrong base_url or key, or an Ollama without any
            if not models and provider.kind in ("openai", "ollama"):
                what += ", but lists no models: 'manallm-proxy check --live' says why"
        yield from wrapped(f"  {name:<12} ", what)
    if unset := keys_not_set(list(generation.config.providers.values())):
        yield from wrapped("  not set:     ", ", ".join(unset))


def _alias(generation: Generation, name: str, chain: Chain, dim: bool) -> Iterator[str]:
    """The target that serves, what is missing, and the others."""
    usable, behind = _reached(generation, chain, name)
    if not usable:
        yield f"  {name:<16} -> nobody"
    else:
        written, serves = usable[0]
        found = " (found)" if written.target.is_open else ""
        yield f"  {name:<16} -> {serves.target}{found}"
    pad = " " * 6
    for entry in chain:
        provider = generation.config.providers[entry.target.provider]
        wish = preferred_model(entry) if entry.target.is_open else entry.target.model
        if provider.kind == "ollama" and wish and (lacks := missing(generation, wish, provider)):
            yield from wrapped(pad, lacks)
    others = ", ".join(str(now.target) for _, now in usable[1:])
    more = ", ".join(str(now.target) for now in behind)
    for text in filter(
        None,
        (
            others and f"then {others}",
            more and f"a request ends there: fallback_on: [missing_model] would go on to {more}",
        ),
    ):
        for line in wrapped(pad, text):
            yield _DIM.format(line) if dim else line


def _reached(generation: Generation, chain: Chain, name: str) -> tuple[list[tuple[Entry, Entry]], list[Entry]]:
    """The entries that requests would be sent to, as written and as filled, and those that none reaches: before them is
    a model that its Ollama does not have, whose 404 goes to the caller."""
    usable: list[tuple[Entry, Entry]] = []
    behind: list[Entry] = []
    ended = False
    for written, now in zip(chain, generation.catalog.filled(chain, needs_of(name)), strict=True):
        if not _serves(generation, now):
            ended = ended or _ends(generation, now)
        elif ended:
            behind.append(now)
        else:
            usable.append((written, now))
    return usable, behind


def _ends(generation: Generation, entry: Entry) -> bool:
    """Whether a request would be sent to `entry`, refused, and end with that."""
    health, now = generation.registry.providers[entry.target.provider], generation.registry.clock()
    reachable = not entry.target.is_open and health.is_usable(now) and not health.provider.failures
    return reachable and entry.fallback_on.isdisjoint(("missing_model", "404"))


def _serves(generation: Generation, entry: Entry) -> bool:
    """Whether a request would be sent to `entry` now."""
    health, now = generation.registry.providers[entry.target.provider], generation.registry.clock()
    if entry.target.is_open or not health.is_usable(now) or health.provider.failures:
        return False
    knows = generation.catalog.knows(entry.target.provider)
    return not (
        knows
        and generation.config.providers[entry.target.provider].kind == "ollama"
        and generation.catalog.find(entry.target) is None
    )


def try_line(generation: Generation, address: str) -> str:
    """A working command: with an available alias or model, a key's header if keys are required, and the socket."""
    unix, base = ("", address) if address.startswith("http") else (f"--unix-socket {shlex.quote(address[5:])} ", "")
    base = _from_here(base or "http://localhost")
    key = '-H "Authorization: Bearer $MANALLM_API_KEY" ' if generation.config.auth.keys else ""
    model = _model(generation)
    if model is None:
        return f"curl {unix}{key}{base}/v1/models"
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    return f"curl {unix}{key}{base}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _from_here(address: str) -> str:
    """The URL by which this machine reaches the listener at `address`."""
    return address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _model(generation: Generation) -> str | None:
    """The default alias, another one for chats, or any listed model."""
    aliases = generation.config.aliases
    names = [generation.config.default] if generation.config.default else []
    for name in (*names, *aliases):
        if not needs_of(name) and _reached(generation, aliases[name], name)[0]:
            return name
    for provider in generation.providers:
        for entry in generation.catalog.filled(generation.resolve(f"{provider}/*"), needs_of("")):
            if _serves(generation, entry):
                return str(entry.target)
    return next(iter(names or aliases), None)


def wrapped(head: str, text: str) -> Iterator[str]:
    """`text` after `head`, wrapped at blanks, with a hanging indent of the same width."""
    line = head
    for word in text.split(" "):
        if len(line) + len(word) > WIDTH and line.strip():
            yield line.rstrip()
            line = " " * len(head)
        line += f"{word} "
    yield line.rstrip()
