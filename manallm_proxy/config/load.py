"""Two YAML files that belong together become one frozen `Config`, or all their mistakes at once.

`document` reads a file, `strict` turns its parts into the classes of `settings`; here is what no part can
know alone: which provider a chain means, whose timeout holds, whether a key is there. Each part is
read on its own, so that a mistake in one hides none in another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from manallm_proxy.config.key_checks import mistakes_of
from manallm_proxy.config.model import (
    AliasesFile,
    AliasGiven,
    Auth,
    Config,
    Cors,
    EntryGiven,
    HealthSettings,
    Kind,
    Limits,
    Listen,
    Log,
    Metrics,
    ProviderConfig,
    ProviderGiven,
    ProxyFile,
    Streaming,
    is_loopback,
)
from manallm_proxy.config.structure import ConfigError, Mistakes, join, structure
from manallm_proxy.config.values import Wrong, api_key, suggestion
from manallm_proxy.config.yaml_file import Unset, read, shown, without_newline
from manallm_proxy.contract.targets import Chain, Entry, Timeouts

__all__ = [
    "Auth",
    "Config",
    "ConfigError",
    "Cors",
    "HealthSettings",
    "Kind",
    "Limits",
    "Listen",
    "Log",
    "Metrics",
    "ProviderConfig",
    "Streaming",
    "exposure_mistake",
    "find",
    "is_loopback",
    "load",
]

PLACES: Final = ("config/proxy.yaml", "/etc/manallm/proxy.yaml")
"""Where a configuration is looked for when nobody names one."""
ALIASES_FILE: Final = "aliases.yaml"
OLLAMA_URL: Final = "http://127.0.0.1:11434"
_PROVIDER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ALIAS_NAME: Final = re.compile(r"[\x21-\x2e\x30-\x7e]{1,128}")
_NOT_FOR_LOOPBACK: Final = ("base_url", "api_key", "api_key_file", "headers", "proxy")


def find(environ: Mapping[str, str], explicit: str | None = None) -> Path:
    """The file to load: `explicit`, else the first of ``$MANALLM_CONFIG`` and `PLACES` that exists.

    An explicit one is not looked for: if it is missing, `load` says so. ConfigError where there is none.
    """
    if explicit is not None:
        return Path(explicit)
    named = environ.get("MANALLM_CONFIG")
    places = [Path(place) for place in (named, *PLACES) if place]
    for place in places:
        if place.exists():
            return place
    looked = ", ".join(str(place) for place in places)
    raise ConfigError([f"no configuration found (looked for {looked}); name one with --config or MANALLM_CONFIG"])


def load(path: Path, environ: Mapping[str, str], host: str | None = None, port: int | None = None) -> Config:
    """The configuration at `path`. ConfigError with every mistake of both files.

    `host` and `port` come from the command line and win over ``listen``, its ``unix`` included.
    """
    mistakes = Mistakes()
    config = _load(Path(path), environ, host, port, mistakes)
    if mistakes or config is None:
        raise ConfigError(mistakes)
    return config


def exposure_mistake(config: Config, host: str) -> str | None:
    """Why `config` must not be served on `host`: nobody checks who calls. None where it may."""
    if config.auth.open or config.auth.keys or is_loopback(host):
        return None
    return (
        f"{host} can be reached by others, and nothing checks who they are: give each of them a key under auth.keys "
        "('manallm-proxy hash-key' makes one), or listen on 127.0.0.1 or a unix socket behind a server that checks "
        "(nginx), or say 'auth.open: true' if everyone who reaches it may use it"
    )


def _load(
    path: Path, environ: Mapping[str, str], host: str | None, port: int | None, mistakes: Mistakes
) -> Config | None:
    raw = read(path, environ, lambda what: mistakes.note(f"{path}: {what}"))
    if raw is None:
        return None
    file = structure(ProxyFile, raw, "", mistakes)
    if file is None:
        return None
    listen = file.listen
    if host is not None or port is not None:
        listen = Listen(listen.host if host is None else host, listen.port if port is None else port)
    timeouts = file.timeouts.over(Timeouts())
    providers = _Providers(path.parent, timeouts, file.alias_prefix, mistakes)
    for name, given in file.providers.items():
        providers.add(name, given)
    aliases = _Aliases(providers, file.alias_prefix, mistakes)
    given_aliases = _aliases_of(file, path, environ, mistakes)
    for name, given in given_aliases.aliases.items():
        aliases.add(name, given)
    config = Config(
        listen=listen,
        default_provider=_default_provider(file, providers, mistakes),
        alias_prefix=file.alias_prefix,
        limits=file.limits,
        health=file.health,
        timeouts=timeouts,
        streaming=file.streaming,
        responses=file.responses,
        metrics=file.metrics,
        log=file.log,
        cors=file.cors,
        auth=file.auth,
        providers=providers.done,
        aliases=aliases.done,
        default=given_aliases.default,
        path=path,
    )
    if config.default is not None and config.default not in given_aliases.aliases:
        mistakes.add(
            "default", f"no alias '{shown(config.default)}'{suggestion(config.default, given_aliases.aliases)}"
        )
    if config.exposed and not mistakes.within("auth") and (what := exposure_mistake(config, listen.host)):
        mistakes.add("listen.host", what)
    for place, told in mistakes_of(file.auth, given_aliases.aliases, providers.kinds, file.alias_prefix):
        mistakes.add(place, told)
    return config


def _default_provider(file: ProxyFile, providers: _Providers, mistakes: Mistakes) -> str | None:
    named = file.default_provider
    if named is None:
        return "ollama" if "ollama" in providers.kinds else None
    if named not in providers.kinds:
        mistakes.add("default_provider", f"no provider '{shown(named)}'{suggestion(named, providers.kinds)}")
    return named


def _aliases_of(file: ProxyFile, path: Path, environ: Mapping[str, str], mistakes: Mistakes) -> AliasesFile:
    """The aliases, from this file or from the one that it names."""
    inline = file.aliases is not None or file.default is not None
    if inline and file.aliases_file is not None:
        mistakes.add("aliases_file", "give either aliases_file, or aliases and default right here")
    if inline or mistakes.within("aliases") or mistakes.within("default"):
        return AliasesFile(file.aliases or {}, file.default)
    beside = path.parent / (file.aliases_file or ALIASES_FILE)
    raw = read(beside, environ, lambda what: mistakes.note(f"{beside}: {what}"))
    if raw is None:
        return AliasesFile()
    found = Mistakes()
    given = structure(AliasesFile, raw, "", found)
    for mistake in found:
        mistakes.note(f"{beside}: {mistake}")
    return given or AliasesFile()


@attrs.define
class _Providers:
    """The providers read so far. ``kinds`` knows the name of each, however wrong the rest of it is."""

    folder: Path
    timeouts: Timeouts
    alias_prefix: str
    mistakes: Mistakes
    done: dict[str, ProviderConfig] = attrs.field(factory=dict)
    kinds: dict[str, Kind | None] = attrs.field(factory=dict)

    def add(self, name: str, raw: object) -> None:
        path = join("providers", name)
        if _PROVIDER_NAME.fullmatch(name) is None:
            self.mistakes.add(path, "a provider's name is letters, digits, '.', '_' and '-', at most 64 of them")
        elif f"{name}/" == self.alias_prefix:
            self.mistakes.add(path, f"a provider cannot have the aliases' own name (alias_prefix is '{name}/')")
        given = structure(ProviderGiven, raw, path, self.mistakes)
        self.kinds[name] = given.kind if given else None
        if given is None:
            return
        self._check_kind(given, raw if isinstance(raw, dict) else {}, path)
        key, missing = self._key(given, path)
        self.done[name] = ProviderConfig(
            name=name,
            kind=given.kind,
            base_url=given.base_url or (OLLAMA_URL if given.kind == "ollama" else None),
            api_key=key,
            api_key_missing=missing,
            headers=given.headers,
            timeouts=given.timeouts.over(self.timeouts),
            max_concurrent=given.max_concurrent,
            api=given.api or "native",
            extra_retryable_statuses=frozenset(given.extra_retryable_statuses),
            verify_tls=given.verify_tls,
            proxy=given.proxy,
            options=given.options,
            stream_usage=given.stream_usage,
        )

    def _check_kind(self, given: ProviderGiven, raw: Mapping[str, Any], path: str) -> None:
        """What one kind needs and others do not know."""
        if given.kind == "openai" and given.base_url is None:
            self.mistakes.add(
                f"{path}.base_url", "is missing: kind openai needs the server's address, such as https://host/v1"
            )
        if given.kind != "ollama" and given.api is not None:
            self.mistakes.add(f"{path}.api", "only kind ollama has a choice of api")
        if given.options and (why := self.refuses_options(given.kind, given.api)):
            self.mistakes.add(f"{path}.options", why)
        if given.kind == "loopback":
            for key in _NOT_FOR_LOOPBACK:
                if raw.get(key) is not None:
                    self.mistakes.add(f"{path}.{key}", "must not be given: kind loopback calls nobody")

    @staticmethod
    def refuses_options(kind: Kind | None, api: str | None) -> str | None:
        """Why options would go nowhere; None where they are sent, or where nobody can say yet."""
        if kind not in ("ollama", None):
            return f"options are sent by kind ollama only, not by kind {kind}"
        return "options are not sent with 'api: openai', which relays requests as they are" if api == "openai" else None

    def _key(self, given: ProviderGiven, path: str) -> tuple[str | None, str | None]:
        """The key, and why there is none although one is wanted."""
        if given.api_key_file is not None:
            if given.api_key is not None:
                self.mistakes.add(f"{path}.api_key_file", "give either api_key or api_key_file")
                return None, None
            return self._key_of_file(self.folder / given.api_key_file, f"{path}.api_key_file"), None
        if isinstance(given.api_key, Unset):
            return None, str(given.api_key)
        if given.api_key is None and given.kind == "google":
            return None, "no api_key is given"
        return given.api_key, None

    def _key_of_file(self, file: Path, path: str) -> str | None:
        try:
            return str(api_key(without_newline(file.read_text("utf-8"))))
        except OSError as error:
            what = f"the file cannot be read ({error.strerror or 'input/output error'})"
        except Wrong as error:
            what = f"the file {error}"
        except ValueError:
            what = "the file is not text"
        self.mistakes.add(path, what)
        return None


@attrs.define
class _Aliases:
    """The aliases read so far."""

    providers: _Providers
    prefix: str
    mistakes: Mistakes
    done: dict[str, Chain] = attrs.field(factory=dict)

    def add(self, name: str, raw: object) -> None:
        path = join("aliases", name)
        segment = name.removeprefix(self.prefix)
        if not name.startswith(self.prefix) or _ALIAS_NAME.fullmatch(segment) is None:
            self.mistakes.add(
                path, f"an alias is '{self.prefix}' and one segment of visible ASCII, without a slash or blanks"
            )
        given = structure(AliasGiven, raw, path, self.mistakes)
        if given is None:
            return
        if not given.chain:
            self.mistakes.add(f"{path}.chain", "needs at least one target")
        entries = [self._entry(each, given, join(path, "chain", n)) for n, each in enumerate(given.chain)]
        self.done[name] = Chain(name, tuple(entry for entry in entries if entry is not None), given.description)

    def _entry(self, raw: object, alias: AliasGiven, path: str) -> Entry | None:
        if not isinstance(raw, dict):
            return self._short_entry(raw, alias, path)
        given = structure(EntryGiven, raw, path, self.mistakes)
        return None if given is None else self._resolved(given, alias, path)

    def _short_entry(self, raw: object, alias: AliasGiven, path: str) -> Entry | None:
        """A target alone; its mistakes are the entry's own."""
        found = Mistakes()
        given = structure(EntryGiven, {"target": raw}, path, found)
        for mistake in found:
            self.mistakes.add(path, mistake.removeprefix(f"{path}.target: "))
        return None if given is None else self._resolved(given, alias, path)

    def _resolved(self, given: EntryGiven, alias: AliasGiven, path: str) -> Entry | None:
        name = given.target.provider
        if f"{name}/" == self.prefix:
            self.mistakes.add(path, "names an alias; a chain holds targets (provider/model)")
            return None
        if name not in self.providers.kinds:
            self.mistakes.add(path, f"no provider '{shown(name)}'{suggestion(name, self.providers.kinds)}")
            return None
        provider = self.providers.done.get(name)
        if provider is None:
            return None
        if given.options and (why := self.providers.refuses_options(provider.kind, provider.api)):
            self.mistakes.add(f"{path}.options", why)
        return Entry(
            target=given.target,
            timeouts=given.timeouts.over(provider.timeouts),
            options={**provider.options, **given.options},
            fallback_on=frozenset(alias.fallback_on if given.fallback_on is None else given.fallback_on),
        )
