"""Reads the two YAML files into one frozen `Config`, or reports all their mistakes at once.

`yaml_file` reads a file, `structure` turns its parts into the classes of `model`, `providers` and `aliases` check
each entry; this file checks across parts. Each part is read separately, so that a mistake in one hides none in another.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from manallm_proxy.config.aliases import Aliases
from manallm_proxy.config.file_model import AliasesFile, ProxyFile
from manallm_proxy.config.found_servers import Addition
from manallm_proxy.config.hints import suggestion
from manallm_proxy.config.key_checks import key_mistakes
from manallm_proxy.config.loopback import is_loopback
from manallm_proxy.config.model import Config, DiscoveredServer, Listen
from manallm_proxy.config.own_address import MISTAKE as OWN_ADDRESS
from manallm_proxy.config.own_address import is_own
from manallm_proxy.config.places import located
from manallm_proxy.config.pricing import priced
from manallm_proxy.config.providers import Providers
from manallm_proxy.config.structure import ConfigError, Mistakes, structure
from manallm_proxy.config.tracing import traces_of
from manallm_proxy.config.yaml_file import Unset, read, shown
from manallm_proxy.contract.targets import Entry, Timeouts

PLACES: Final = ("config/proxy.yaml", "/etc/manallm/proxy.yaml")
"""Where to look for a configuration if none is named."""
QUICKSTART: Final = Path(__file__).parent.parent / "examples" / "quickstart.yaml"
"""The built-in configuration, served if there is no other."""
ALIASES_FILE: Final = "aliases.yaml"
SOCKET_PATH_LIMIT: Final = 107
"""Bytes, without the zero at its end (Linux, unix(7))."""
_NEXT: Final = {"no such file": "; aliases_file names another one, and aliases may stand in proxy.yaml itself"}


def find(environ: Mapping[str, str], explicit: str | None = None) -> Path:
    """The file to load: `explicit`, else ``$MANALLM_CONFIG``, else the first of `PLACES` that exists.

    Raises ConfigError if none of them does, or if ``$MANALLM_CONFIG`` names no file. Whether `explicit` exists is left
    to `load`.
    """
    place = find_any(environ, explicit)
    if place is None:
        looked = ", ".join(PLACES)
        raise ConfigError(
            [
                f"no configuration found (looked for {looked}); name one with --config or MANALLM_CONFIG, "
                "or let 'manallm-proxy init' write one"
            ]
        )
    return place


def find_any(environ: Mapping[str, str], explicit: str | None = None) -> Path | None:
    """As `find`, but None if there is no configuration at all."""
    if explicit is not None:
        return Path(explicit)
    if named := environ.get("MANALLM_CONFIG"):
        if not _is_there(Path(named)):
            raise ConfigError([f"MANALLM_CONFIG names {named}, and there is no such file"])
        return Path(named)
    return next((Path(place) for place in PLACES if _is_there(Path(place))), None)


def _is_there(place: Path) -> bool:
    """Whether something is there; also if that cannot be seen, as in a folder of other users: reading it says why.

    `Path.exists` denies what it cannot see since Python 3.14.
    """
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a name with a zero byte in it
        return False
    except OSError:
        return True
    return True


def load(
    path: Path,
    environ: Mapping[str, str],
    host: str | None = None,
    port: int | None = None,
    found: Sequence[DiscoveredServer] = (),
) -> Config:
    """The configuration at `path`. Raises ConfigError with every mistake of both files.

    `host` and `port` are the command line's; they win over ``listen``, its ``unix`` included. `found` are added as
    providers, and next to the open entries of the chains.
    """
    mistakes = Mistakes()
    config = _load(Path(path), environ, host, port, found, mistakes)
    if mistakes or config is None:
        raise with_places(mistakes, Path(path))
    if config.notes:
        config = attrs.evolve(config, notes=located(config.notes, _files(Path(path))))
    return config


def with_places(mistakes: Iterable[str], path: Path) -> ConfigError:
    """The error for `mistakes` of the configuration at `path`, each with its file and line."""
    return ConfigError(mistakes, located(mistakes, _files(path)))


def _files(path: Path) -> list[Path]:
    """The files, as far as they are known even if one of them is wrong."""
    named = read(path, {}, lambda what: None) or {}
    beside = named.get("aliases_file", ALIASES_FILE)
    inline = "aliases" in named or not isinstance(beside, str)
    return [path] if inline else [path, path.parent / str(beside)]


def exposure_mistake(config: Config, host: str) -> str | None:
    """Why `config` must not be served on `host`: other machines reach it, without authentication. None if it may."""
    if config.auth.open or config.auth.keys or is_loopback(host):
        return None
    return (
        f"{host} can be reached by others, and nothing checks who they are: give each of them a key under auth.keys "
        "('manallm-proxy hash-key' makes one), or listen on 127.0.0.1 or a unix socket behind a server that checks "
        "(nginx), or say 'auth.open: true' if everyone who reaches it may use it"
    )


def _load(
    path: Path,
    environ: Mapping[str, str],
    host: str | None,
    port: int | None,
    found: Sequence[DiscoveredServer],
    mistakes: Mistakes,
) -> Config | None:
    raw = read(path, environ, lambda what: mistakes.note(f"{path}: {what}"))
    if raw is None:
        return None
    addition = Addition.to(raw, found)
    file = structure(ProxyFile, raw, "", mistakes)
    if file is None:
        return None
    listen = file.listen
    if host is not None or port is not None:
        listen = Listen(listen.host if host is None else host, listen.port if port is None else port)
    elif listen.unix is not None:
        listen = attrs.evolve(listen, unix=str(path.parent / listen.unix))
    timeouts = file.timeouts.over(Timeouts())
    providers = Providers(path.parent, timeouts, file.answers.limits, file.alias_prefix, mistakes)
    for name, given in file.providers.items():
        providers.add(name, given)
    for name, made in providers.done.items() if "LISTEN_FDS" not in environ else ():  # systemd's sockets are elsewhere
        if made.proxy is None and made.base_url is not None and is_own(listen, made.base_url):
            mistakes.add(f"providers.{name}.base_url", OWN_ADDRESS)
    aliases = Aliases(providers, file.alias_prefix, file.chain_timeout, mistakes)
    given_aliases = _aliases_of(file, path, environ, mistakes)
    if beside := _unread_aliases(file, path):
        providers.notes.append(f"aliases: those of {path.name} count; {beside} is not read, and can be removed")
    for name, given in given_aliases.aliases.items():
        addition.beside_open_entries(given)
        aliases.add(name, given)
    windows = aliases.finish()
    if isinstance(file.state, Unset):
        providers.notes.append(
            f"state: {file.state}, so nothing is shared with other instances, nor kept over a restart"
        )
    if listen.unix is not None and len(os.fsencode(listen.unix)) > SOCKET_PATH_LIMIT:
        most = f"expected at most {SOCKET_PATH_LIMIT} bytes: the kernel takes no longer path for a socket"
        mistakes.add("listen.unix", most)
    config = Config(
        listen=listen,
        default_provider=_default_provider(file, providers, mistakes),
        alias_prefix=file.alias_prefix,
        limits=file.limits,
        answers=file.answers,
        health=file.health,
        timeouts=timeouts,
        streaming=file.streaming,
        responses=file.responses,
        cache=file.cache,
        state=None if isinstance(file.state, Unset) else file.state,
        metrics=file.metrics,
        log=file.log,
        cors=file.cors,
        auth=file.auth,
        providers=providers.done,
        aliases=aliases.done,
        default=given_aliases.default,
        path=path,
        traces=traces_of(file.traces, environ, mistakes, providers.notes),
        status_page=file.status_page,
        chain_timeout=file.chain_timeout,
        spend_file=path.parent / file.spend_file if file.spend_file is not None else None,
        windows=windows,
        found=tuple(found),
        notes=tuple(providers.notes),
    )
    config = attrs.evolve(config, warm=_warm(file, config, mistakes))
    config = priced(config)
    if config.default is not None and config.default not in given_aliases.aliases:
        mistakes.add(
            "default", f"no alias '{shown(config.default)}'{suggestion(config.default, given_aliases.aliases)}"
        )
    if config.exposed and not mistakes.within("auth") and (what := exposure_mistake(config, listen.host)):
        mistakes.add("listen.host", what)
    for place, what in key_mistakes(file.auth, given_aliases.aliases, providers.kinds, file.alias_prefix):
        mistakes.add(place, what)
    return config


def _warm(file: ProxyFile, config: Config, mistakes: Mistakes) -> tuple[Entry, ...]:
    """The entries of ``warm``, each with its chain's options: with others the first request would reload the model."""
    entries = {entry.target: entry for chain in config.aliases.values() for entry in chain}
    found: list[Entry] = []
    for n, target in enumerate(file.warm):
        provider = config.providers.get(target.provider)
        if f"{target.provider}/" == file.alias_prefix:
            mistakes.add(f"warm[{n}]", "names an alias; warm holds targets (provider/model)")
        elif "*" in target.model:
            mistakes.add(f"warm[{n}]", "names no model: a '*' stands for one in chains only")
        elif target.provider not in file.providers:
            hint = suggestion(target.provider, file.providers)
            mistakes.add(f"warm[{n}]", f"no provider '{shown(target.provider)}'{hint}")
        elif provider is not None and not provider.loads_models:
            mistakes.add(f"warm[{n}]", f"{target.provider} is no Ollama or llama-server with 'local: true'")
        elif provider is not None:
            found.append(entries.get(target) or Entry(target, options=config.options_of(target)))
    return tuple(found)


def _default_provider(file: ProxyFile, providers: Providers, mistakes: Mistakes) -> str | None:
    named = file.default_provider
    if named is None:
        return "ollama" if "ollama" in providers.kinds else None
    if named not in providers.kinds:
        mistakes.add("default_provider", f"no provider '{shown(named)}'{suggestion(named, providers.kinds)}")
    return named


def _unread_aliases(file: ProxyFile, path: Path) -> Path | None:
    """An ``aliases.yaml`` next to a file that has its own aliases, unless it belongs to a ``proxy.yaml`` there."""
    beside = path.parent / ALIASES_FILE
    if file.aliases is None or file.aliases_file is not None or not os.path.exists(beside):
        return None
    return None if path.name != "proxy.yaml" and os.path.exists(path.parent / "proxy.yaml") else beside


def _aliases_of(file: ProxyFile, path: Path, environ: Mapping[str, str], mistakes: Mistakes) -> AliasesFile:
    """The aliases: from this file, or from the one that it names."""
    inline = file.aliases is not None or file.default is not None
    if inline and file.aliases_file is not None:
        mistakes.add("aliases_file", "give either aliases_file, or aliases and default right here")
    if inline or mistakes.within("aliases") or mistakes.within("default"):
        return AliasesFile(file.aliases or {}, file.default)
    beside = path.parent / (file.aliases_file or ALIASES_FILE)
    raw = read(beside, environ, lambda what: mistakes.note(f"{beside}: {what}{_NEXT.get(what, '')}"))
    if raw is None:
        return AliasesFile()
    found = Mistakes()
    given = structure(AliasesFile, raw, "", found)
    for mistake in found:
        mistakes.note(f"{beside}: {mistake}")
    return given or AliasesFile()
