"""``init``: writes proxy.yaml and aliases.yaml for the model servers and keys found."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from manallm_proxy.cli.discovery import Server
from manallm_proxy.cli.server_scan import ScanResult, scan_servers
from manallm_proxy.config.found_servers import free_name
from manallm_proxy.config.load import QUICKSTART, load
from manallm_proxy.config.model import Config, Listen, ProviderConfig
from manallm_proxy.config.providers import OLLAMA_URL
from manallm_proxy.contract.records import frozen
from manallm_proxy.contract.targets import MODEL_LIMIT, Chain
from manallm_proxy.routing.best_model import best, needs_of
from manallm_proxy.routing.catalog import short_name

FILES: Final = ("proxy.yaml", "aliases.yaml")
_PLAIN: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/-]*[A-Za-z0-9._/-])?")
"""Text that needs no quotes in YAML."""


@frozen
class Named:
    """A server, and the name of its provider."""

    name: str
    server: Server


def init(folder: str, force: bool, environ: Mapping[str, str]) -> int:
    """Writes both files. Returns 1, with nothing changed, if one exists (without `force`) or cannot be written."""
    place = Path(folder)
    there = [place / name for name in FILES if os.path.exists(place / name)]
    if there and not force:
        names = " and ".join(map(str, there))
        print(f"{names}: there already, nothing was changed (--force replaces them and keeps a copy)", file=sys.stderr)
        return 1
    around = asyncio.run(scan_servers(environ, Listen()))
    for line in around.lines():
        print(line)
    shipped = load(QUICKSTART, around.environ(environ))
    texts = dict(zip(FILES, written(around, shipped), strict=True))
    _check(texts, around.environ(environ))
    try:
        place.mkdir(parents=True, exist_ok=True)
        copies = _replace({place / name: text for name, text in texts.items()})
    except OSError as error:
        print(f"{error.filename or place}: cannot be written ({error.strerror})", file=sys.stderr)
        return 1
    for copy in copies:
        print(f"kept: {copy}")
    keys = [name for name, provider in shipped.providers.items() if provider.api_key]
    if not around.servers and not keys:
        print("no model server and no key was found; edit the files, or start Ollama and run this again with --force")
    serve = "serve" if place == Path("config") else f"serve --config {place / FILES[0]}"
    print(f"written: {place / FILES[0]} and {FILES[1]}")
    print(f"next: manallm-proxy {serve}")
    return 0


def _replace(texts: Mapping[Path, str]) -> list[Path]:
    """Writes `texts`, and returns the backups of existing files. Raises OSError, with nothing changed."""
    new: list[Path] = []
    copies: list[Path] = []
    try:
        for file, text in texts.items():
            mode = 0o666
            if os.path.exists(file):
                mode = file.stat().st_mode & 0o777
                copies.append(_free(file))
                _write(copies[-1], file.read_bytes(), mode)
            new.append(file.with_name(f"{file.name}.new"))
            _write(new[-1], text.encode(), mode)
    except OSError:
        for each in filter(Path.is_file, (*new, *copies)):
            each.unlink()
        raise
    for file, each in zip(texts, new, strict=True):
        each.replace(file)
    return copies


def _write(file: Path, data: bytes, mode: int) -> None:
    """Writes a file that has `mode` from the start, since it may contain a key."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(data)


def _free(file: Path) -> Path:
    """The name for a copy of `file`."""
    copy, number = file.with_name(f"{file.name}.bak"), 1
    while os.path.exists(copy):
        number += 1
        copy = file.with_name(f"{file.name}.bak{number}")
    return copy


def _check(texts: Mapping[str, str], environ: Mapping[str, str]) -> None:
    """Raises ConfigError if the new files would be invalid: a bug of ours, found before any file is replaced."""
    with TemporaryDirectory() as folder:
        for name, text in texts.items():
            (Path(folder) / name).write_text(text, "utf-8")
        load(Path(folder) / FILES[0], environ)


def written(around: ScanResult, shipped: Config) -> tuple[str, str]:
    """The text of both files. `shipped` is the quickstart: its clouds, descriptions and preferences."""
    taken: dict[str, object] = {name: None for name, p in shipped.providers.items() if _is_cloud(p)}
    servers: list[Named] = []
    for server in around.servers:
        name = free_name(server.found.name, taken)
        taken[name] = None
        servers.append(Named(name, server))
    return _proxy(servers, around, shipped), _aliases(servers, shipped, _has_ollama(servers, around))


def _proxy(servers: Sequence[Named], around: ScanResult, shipped: Config) -> str:
    blocks: list[str] = []
    if not any(each.name == "ollama" for each in servers):
        url = around.ollama_url or OLLAMA_URL
        lines = f"  ollama:                           # did not answer\n    kind: ollama\n{_ollama_url(url)}"
        if _has_ollama(servers, around):
            blocks.append(lines)
        else:  # or `check --live` would complain about our own files
            blocks.append("".join(f"  # {line[2:]}\n" for line in lines.splitlines()))
    for each in servers:
        found, models = each.server.found, each.server.models
        url = _ollama_url(found.base_url) if each.name == "ollama" else f"    base_url: {_yaml(found.base_url)}\n"
        url += _LOCAL if found.kind == "ollama" else ""
        count = f"{len(models)} model{'' if len(models) == 1 else 's'}"
        blocks.append(f"  {each.name}:{' ' * (33 - len(each.name))}# found, {count}\n    kind: {found.kind}\n{url}")
    for name, cloud in shipped.providers.items():
        variable = f"{name.upper()}_API_KEY"
        if not _is_cloud(cloud):
            continue
        url = f"    base_url: {cloud.base_url}\n" if cloud.base_url else ""
        blocks.append(f"  {name}:\n    kind: {cloud.kind}\n{url}    api_key: ${{{variable}}}\n")
    default = next((each.name for each in servers if each.name == "ollama"), servers[0].name if servers else "ollama")
    return PROXY.format(default=default, providers="".join(blocks))


def _has_ollama(servers: Sequence[Named], around: ScanResult) -> bool:
    """Whether the provider is written: it answers, the environment names it, or there is nothing else."""
    return not servers or around.ollama_url is not None or any(each.name == "ollama" for each in servers)


def _ollama_url(url: str) -> str:
    return f"    base_url: ${{OLLAMA_URL:-{url}}}\n"


def _aliases(servers: Sequence[Named], shipped: Config, with_ollama: bool) -> str:
    blocks = [_alias(name, chain, servers, shipped, with_ollama) for name, chain in shipped.aliases.items()]
    return ALIASES.format(aliases="".join(blocks), default=shipped.default)


def _alias(name: str, shown: Chain, servers: Sequence[Named], shipped: Config, with_ollama: bool) -> str:
    """One alias; commented out if no server found can serve it."""
    needs = needs_of(name)
    prefer = next((entry.prefer for entry in shown if entry.prefer), ())
    chain: list[str] = []
    for each in servers:
        usable = [model for model in each.server.models if _is_usable(model.id)]
        model = best(usable, needs, prefer)
        # vectors of two models cannot be compared, so a chain for embeddings has one
        if model is not None and not ("embedding" in needs and chain):
            chain.append(f"      - {_yaml(f'{each.name}/{short_name(model.id)}')}\n")
    clouds = [entry for entry in shown if _is_cloud(shipped.providers[entry.target.provider])]
    if not chain and not needs and with_ollama:
        chain = ["      - ollama/*                    # the best model that it has\n"]
    chain += [f"      - {_yaml(str(entry.target))}\n" for entry in clouds]
    text = "Vectors; another model would need another index" if "embedding" in needs else shown.description
    head = f"  {name}:\n    description: {_yaml(text)}\n    chain:\n"
    if chain:
        return head + "".join(chain)
    wanted = f"{next(iter(prefer), 'a-model')}"
    lines = f"{head}      - ollama/{wanted}            # ollama pull {wanted}\n".splitlines()
    return "".join(f"  # {line[2:]}\n" for line in lines)


def _is_cloud(provider: ProviderConfig) -> bool:
    """Whether it needs an API key. While the key is missing, entries for it are skipped."""
    return provider.api_key is not None or provider.api_key_missing is not None


def _is_usable(id_: str) -> bool:
    """Whether an entry of a chain may name it."""
    return re.fullmatch(rf"[\x21-\x7e]{{1,{MODEL_LIMIT}}}", id_) is not None and "${" not in id_


def _yaml(text: str) -> str:
    return text if _PLAIN.fullmatch(text) or _is_sentence(text) else json.dumps(text)


def _is_sentence(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z][A-Za-z0-9 ,&;-]*", text) is not None


_LOCAL: Final = (
    "    # local: true                   # on hardware of your own: its loads are watched, its queue is here\n"
)

PROXY: Final = """\
# Where the proxy listens, and which providers it calls. Written by `manallm-proxy init`; change what you like.
# Every key there is, with its default: man manallm-proxy.yaml, or config/proxy.yaml of the source.
# All mistakes at once: manallm-proxy check --live

listen:
  host: 127.0.0.1
  port: 3025

aliases_file: aliases.yaml          # beside this file
default_provider: {default}            # serves a bare model name such as "gemma3:4b"

# A provider whose key is not set is listed, never called, and skipped in chains: setting the key is all it takes.
providers:
{providers}"""

ALIASES: Final = """\
# Which class of model is served by whom. A chain is tried from the top: the first target that serves, answers.
# Written by `manallm-proxy init` from what was there. ollama/* would be the best model that Ollama has by then.

aliases:
{aliases}
default: {default}             # used when a request names no model
"""
