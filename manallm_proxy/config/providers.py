"""``providers``: each entry becomes a frozen `ProviderConfig`, or its mistakes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from manallm_proxy.config.file_model import ProviderGiven
from manallm_proxy.config.hints import suggestion
from manallm_proxy.config.model import Dialect, Kind, ProviderConfig
from manallm_proxy.config.structure import Mistakes, join, structure
from manallm_proxy.config.values import InvalidValue, api_key, expected
from manallm_proxy.config.yaml_file import Unset, text_of, without_newline
from manallm_proxy.contract.answers import AnswerLimits
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import LOADED_WITH, OPTION_KINDS, SMALLEST_WINDOW, Timeouts

OLLAMA_URL: Final = "http://127.0.0.1:11434"
OLLAMA_ENDS: Final = ("/v1", "/api")
"""Paths of Ollama's two APIs, which are often copied into its address."""
OPENAI_HOST: Final = "api.openai.com"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIABLE: Final = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*")
KNOWN_OPTIONS: Final = frozenset(
    {
        *LOADED_WITH,
        *OPTION_KINDS,
        *("keep_alive", "think", "truncate"),
        *("mirostat", "mirostat_tau", "mirostat_eta", "tfs_z", "penalize_newline", "numa", "num_gqa", "low_vram"),
        *("f16_kv", "logits_all", "vocab_only", "use_mlock"),
    }
)
"""Ollama's options (api/types.go Options), its top-level settings, and options of older versions."""
_KIND_NAMES: Final[Mapping[type, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
}
_SETTINGS: Final = frozenset(each.name for each in attrs.fields(ProviderGiven))
NOT_FOR_LOOPBACK: Final = ("base_url", "api_key", "api_key_file", "headers", "proxy")


@define
class Providers:
    """The providers read so far. ``kinds`` has every name, including those of invalid entries."""

    folder: Path
    """The folder to which paths in the file are relative."""
    timeouts: Timeouts
    answers: AnswerLimits
    alias_prefix: str
    mistakes: Mistakes
    done: dict[str, ProviderConfig] = attrs.field(factory=dict)
    kinds: dict[str, Kind | None] = attrs.field(factory=dict)
    notes: list[str] = attrs.field(factory=list)
    """Remarks on values that were accepted although they look like slips."""

    def add(self, name: str, raw: object) -> None:
        path = join("providers", name)
        if NAME.fullmatch(name) is None:
            self.mistakes.add(path, "a provider's name is letters, digits, '.', '_' and '-', at most 64 of them")
        elif f"{name}/" == self.alias_prefix:
            self.mistakes.add(path, f"a provider cannot have the aliases' own name (alias_prefix is '{name}/')")
        if not isinstance(raw, dict) and name in _SETTINGS:
            self.mistakes.add(path, "stands among the names of providers: indent it under the one that it belongs to")
        given = structure(ProviderGiven, raw, path, self.mistakes)
        self.kinds[name] = given.kind if given else None
        if given is None:
            return
        base_url = given.base_url or (OLLAMA_URL if given.kind == "ollama" else None)
        if given.kind == "ollama" and base_url is not None:
            for end in OLLAMA_ENDS:
                if base_url.endswith(end):
                    base_url = base_url.removesuffix(end)
                    self.notes.append(f"{path}.base_url: '{end}' at its end is left out: kind ollama adds it itself")
        self._check_kind(given, raw if isinstance(raw, dict) else {}, path)
        self.check_options(given.options, path)
        key, missing = self._key(given, path)
        if key is not None and re.fullmatch(r"""(["']).+\1""", key):
            where = "api_key" if given.api_key_file is None else "api_key_file"
            self.notes.append(f"{path}.{where}: begins and ends with a quote, which is taken as a part of it")
        self.done[name] = ProviderConfig(
            name=name,
            kind=given.kind,
            base_url=base_url,
            api_key=key,
            api_key_missing=missing,
            headers=given.headers,
            timeouts=given.timeouts.over(self.timeouts),
            max_concurrent=given.max_concurrent,
            answers=self.answers,
            api=given.api or "native",
            speaks=_default_dialects(given) if given.speaks is None else given.speaks,
            local=given.local,
            parallel=given.parallel,
            electricity=given.electricity or 0.0,
            client_options=given.client_options,
            degraded_cpu=given.degraded_cpu,
            extra_retryable_statuses=frozenset(given.extra_retryable_statuses),
            verify_tls=given.verify_tls,
            proxy=given.proxy,
            options=given.options,
            stream_usage=given.stream_usage,
            cache=given.cache,
        )

    def check_options(self, options: Mapping[str, Any], path: str) -> None:
        """Adds a mistake for each of `options`, given at `path`, that Ollama refuses or takes for another value, and a
        note for each that it silently ignores."""
        for name, value in options.items():
            kind = OPTION_KINDS.get(name)
            if kind is not None and value is not None and not _is(kind, value):
                self.mistakes.add(join(path, "options", name), str(expected(_KIND_NAMES[kind], value)))
            elif name == "num_ctx" and value is not None and value < SMALLEST_WINDOW:
                what = f"must be at least {SMALLEST_WINDOW} tokens: Ollama takes less for {SMALLEST_WINDOW}"
                self.mistakes.add(join(path, "options", name), what)
            elif name == "num_predict" and value == 0:
                what = "must not be 0, which Ollama takes for no limit; -1 says so"
                self.mistakes.add(join(path, "options", name), what)
            if name not in KNOWN_OPTIONS:
                hint = suggestion(name, KNOWN_OPTIONS)
                self.notes.append(f"{join(path, 'options', name)}: no option that Ollama is known to have{hint}")

    def _check_kind(self, given: ProviderGiven, raw: Mapping[str, Any], path: str) -> None:
        """Adds a mistake for each missing key that this kind requires, and for each that it does not support."""
        if given.kind == "openai" and given.base_url is None:
            self.mistakes.add(
                f"{path}.base_url", "is missing: kind openai needs the server's address, such as https://host/v1"
            )
        if given.kind != "ollama" and given.api is not None:
            self.mistakes.add(f"{path}.api", "only kind ollama has a choice of api")
        if given.speaks is not None and (why := _refuses_dialects(given.kind, given.speaks)):
            self.mistakes.add(f"{path}.speaks", why)
        forces = given.kind == "openai" and "force_tools" in given.options
        if forces and given.options["force_tools"] != "schema":
            self.mistakes.add(f"{path}.options.force_tools", "knows one way: schema")
        options = {key for key in given.options if key != "force_tools"} if forces else given.options
        for key, is_given in (("options", bool(options)), ("client_options", given.client_options)):
            if is_given and (why := refuses_options(given.kind, given.api)):
                self.mistakes.add(f"{path}.{key}", why)
        for key, setting in (("parallel", given.parallel), ("electricity", given.electricity)):
            if setting is not None and not given.local:
                self.mistakes.add(f"{path}.{key}", "is for a server of your own: say 'local: true' as well")
        if given.kind == "loopback":
            for key in NOT_FOR_LOOPBACK:
                if raw.get(key) is not None:
                    self.mistakes.add(f"{path}.{key}", "must not be given: kind loopback calls nobody")

    def _key(self, given: ProviderGiven, path: str) -> tuple[str | None, str | None]:
        """The key, and the reason why it is missing, if one is required."""
        if given.api_key_file is not None:
            if given.api_key is not None:
                self.mistakes.add(f"{path}.api_key_file", "give either api_key or api_key_file")
                return None, None
            return self._key_of_file(self.folder / given.api_key_file, f"{path}.api_key_file"), None
        if isinstance(given.api_key, Unset):
            return None, str(given.api_key)
        if given.api_key is not None and _VARIABLE.fullmatch(str(given.api_key)):
            self.notes.append(f"{path}.api_key: begins with '$' and is taken as it is; a variable is written ${{NAME}}")
        if given.api_key is None and given.kind == "google":
            return None, "no api_key is given"
        return given.api_key, None

    def _key_of_file(self, file: Path, path: str) -> str | None:
        try:
            return str(api_key(without_newline(text_of(file))))
        except OSError as error:
            what = f"the file cannot be read ({error.strerror or 'input/output error'})"
        except InvalidValue as error:
            what = f"the file {error}"
        except ValueError:
            what = "the file is not text"
        self.mistakes.add(path, what)
        return None


def _is(kind: type, value: object) -> bool:
    """Whether Ollama accepts `value` for an option of `kind`: any number for a float, an integer for an int."""
    if isinstance(value, bool) or kind in (bool, list):
        return type(value) is kind
    return isinstance(value, int) or (isinstance(value, float) and (kind is float or value.is_integer()))


def refuses_options(kind: Kind | None, api: str | None) -> str | None:
    """Why Ollama's options would not be sent; None if they are, or if the kind is not known yet."""
    if kind not in ("ollama", None):
        return f"options are sent by kind ollama only, not by kind {kind}"
    return "options are not sent with 'api: openai', which relays requests as they are" if api == "openai" else None


def _refuses_dialects(kind: Kind, speaks: tuple[Dialect, ...]) -> str | None:
    if kind in ("google", "loopback"):
        return f"kind {kind} has no choice of dialects"
    if not speaks:
        return "needs at least one dialect"
    return "names a dialect twice" if len(set(speaks)) < len(speaks) else None


def _default_dialects(given: ProviderGiven) -> tuple[Dialect, ...]:
    """The dialects if none are given: OpenAI's own server is known to accept Responses."""
    is_openai = given.kind == "openai" and urlsplit(given.base_url or "").hostname == OPENAI_HOST
    return ("chat", "responses") if is_openai else ("chat",)
