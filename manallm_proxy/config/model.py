"""The configuration: frozen classes, every default, and what each value may be.

The annotations are used by mypy and by `structure`, which finds each value's reader in them. All durations are in
seconds, all sizes in bytes. The files' contents, before resolution, are in `file_model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from attrs import asdict, field

from manallm_proxy.config import amounts, values
from manallm_proxy.config.keys_model import Auth, Count
from manallm_proxy.config.loopback import is_loopback
from manallm_proxy.config.price_list import GOOGLE, listed_price
from manallm_proxy.config.state_url import state_url
from manallm_proxy.config.values import Duration, Integer, Matching
from manallm_proxy.config.yaml_file import Unset
from manallm_proxy.contract.answers import DEFAULT_LIMITS, AnswerLimits
from manallm_proxy.contract.door import DoorBounds
from manallm_proxy.contract.prices import FREE, Price
from manallm_proxy.contract.records import frozen
from manallm_proxy.contract.targets import Chain, Entry, Target, Timeouts, is_ollama_cloud, ollama_name

Kind = Literal["ollama", "openai", "google", "loopback"]
Api = Literal["native", "openai"]
OnCpu = Literal["last", "use"]
Dialect = Literal["chat", "responses", "messages"]
"""OpenAI's Chat Completions, OpenAI's Responses, Anthropic's Messages."""

HostName = Annotated[str, Matching(r"\*|[a-z0-9._-]+", "'*' or a host in small letters, without a port")]
Port = Annotated[int, Integer(0, 65535)]
Status = Annotated[int, Integer(400, 599)]
Seconds = Annotated[float, Duration()]
SecondsOrZero = Annotated[float, Duration(zero=True)]
Size = Annotated[int, values.size]
Host = Annotated[str, values.host]
FileName = Annotated[str, Matching(r"[^\0]+", "a file's name")]
BaseUrl = Annotated[str, values.base_url]
ProxyUrl = Annotated[str, values.proxy_url]
CollectorUrl = Annotated[str, values.collector_url]
StateUrl = Annotated[str | Unset, state_url]
ApiKey = Annotated[str | Unset, values.api_key]
Prefix = Annotated[str, Matching(r"[\x21-\x2e\x30-\x7e]+/", "one segment and a slash, such as 'mana/'")]
Origin = Annotated[
    str, Matching(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#]+", "'*' or an origin such as https://chat.example.com")
]
ModelOfProvider = Annotated[Target, values.target]
FallbackClass = Annotated[str, values.fallback_class]
Options = Annotated[Mapping[str, Any], values.options]
Pattern = Annotated[str, Matching(r"[\x21-\x7e]{1,256}", "a model's name, in which '*' stands for any text")]
Weight = Annotated[int, Integer(1, 1000)]
Rate = Annotated[float, amounts.rate]
Headers = Mapping[
    Annotated[str, values.header_name],
    Annotated[str, Matching(r"[\t\x20-\x7e]*", "a header's value: visible ASCII and blanks, on one line")],
]


@frozen
class Listen:
    """The address to listen on. ``unix``, a socket's path, wins over host and port."""

    host: Host = "127.0.0.1"
    port: Port = 3025
    """0: any free port."""
    unix: FileName | None = None


@frozen
class Limits:
    """Limits per request, and on all requests together."""

    body: Size = 32 * 2**20
    header: Size = 16 * 2**10
    keys: Count = 1000
    """Max keys at the top level of a request."""
    messages: Count = 20_000
    """Max objects in the top-level lists of a request: messages, or tools."""
    parts: Count = 40_000
    """Objects and lists in all."""
    elements: Count = 350_000
    """Values in all; a text counts twice, and so does a key, since they take the memory of several numbers."""
    depth: Count = 256
    concurrent_requests: Count = 4096
    body_timeout: Seconds = 30.0
    body_rate: Size = 8 * 2**10
    """Min bytes per second of an incoming body, after ``body_timeout``."""
    write_timeout: Seconds = 60.0
    write_rate: Size = 2**10
    """Min bytes per second at which a client must read a waiting answer, after ``write_timeout``."""
    drain: SecondsOrZero = 30.0


@frozen
class Answers:
    """Limits of one answer of a provider, see `AnswerLimits`."""

    body: Size = DEFAULT_LIMITS.body
    text: Size = DEFAULT_LIMITS.text
    keys: Count = DEFAULT_LIMITS.keys
    parts: Count = DEFAULT_LIMITS.parts
    elements: Count = DEFAULT_LIMITS.elements
    depth: Count = DEFAULT_LIMITS.depth
    calls: Count = DEFAULT_LIMITS.calls
    items: Count = DEFAULT_LIMITS.items

    @property
    def limits(self) -> AnswerLimits:
        return AnswerLimits(**asdict(self))


@frozen
class HealthSettings:
    """How often providers are probed, and how many failures in a row make one unhealthy for how long."""

    probe_interval: Seconds = 30.0
    probe_timeout: Seconds = 3.0
    failure_threshold: Count = 2
    backoff: Seconds = 60.0


@frozen
class Streaming:
    """Seconds of silence after which a stream gets a heartbeat; 0: never."""

    heartbeat: SecondsOrZero = 15.0
    early_heartbeat: SecondsOrZero = 0.0


@frozen
class Responses:
    """What ``/v1/responses`` keeps for clients that refer to earlier answers; ``ttl`` counts from the last use."""

    memory: Size = 64 * 2**20
    ttl: Seconds = 3600.0


@frozen
class Cached:
    """Caching: for an alias, of its answers; for a provider, of its embeddings."""

    ttl: Seconds


@frozen
class Cache:
    """The answer cache. ``memory``: max bytes per worker."""

    memory: Size = 64 * 2**20


@frozen
class Metrics:
    """``GET /metrics``."""

    enabled: bool = True


@frozen
class Traces:
    """OpenTelemetry. ``endpoint``: of OTLP over HTTP; `load` adds the path, or uses the environment's."""

    endpoint: CollectorUrl | None = None


@frozen
class Log:
    """``auto``: human on a terminal, JSON lines otherwise."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "human", "json"] = "auto"


@frozen
class Cors:
    """Origins of web pages that may call, in addition to those on this machine and apps; ``*`` is any."""

    origins: tuple[Origin, ...] = ()
    hosts: tuple[HostName, ...] = ()
    """Host names under which browsers may call a proxy on loopback without keys, in addition to this machine's."""


@frozen
class DiscoveredServer:
    """A model server that answered on this machine, or at an address in the environment: a provider to add."""

    name: str
    kind: Kind
    base_url: str


@frozen
class ProviderConfig:
    """One provider, resolved. Fields that may contain a key stay out of ``repr``."""

    name: str
    kind: Kind
    base_url: str | None
    """Without a slash at its end. None: Google's own, or loopback, which has none."""
    api_key: str | None = field(default=None, repr=False)
    api_key_missing: str | None = None
    """Why a required key is missing ("GROQ_API_KEY is not set"); None if none is missing."""
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    timeouts: Timeouts = Timeouts()
    max_concurrent: int | None = None
    api: Api = "native"
    """Kind ollama: its own endpoints, or its OpenAI endpoints relayed verbatim."""
    speaks: tuple[Dialect, ...] = ("chat",)
    """Dialects that the server accepts natively, so that a request in one of them need not be translated."""
    local: bool = False
    """Whether it runs on the operator's own hardware."""
    parallel: int | None = None
    """Requests that a local server answers at a time per model; others wait in the proxy. None: no limit."""
    electricity: float = 0.0
    """USD per million tokens of a local server."""
    client_options: bool = False
    """Kind ollama: whether clients may set runner options and ``keep_alive``."""
    degraded_cpu: OnCpu = "last"
    """If a model is partly on the CPU: whether it is tried after all other entries of its chain, or in its order."""
    extra_retryable_statuses: frozenset[int] = frozenset({408, 498})
    verify_tls: bool = True
    proxy: str | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(factory=dict)
    """Kind ollama: sent with every request."""
    answers: AnswerLimits = DEFAULT_LIMITS
    """Limits of its answers."""
    stream_usage: bool = True
    """Whether to ask for ``stream_options.include_usage``; some servers refuse it."""
    cache: Cached | None = None
    """Whether its embeddings are cached, and for how long."""

    @property
    def configured(self) -> bool:
        """Whether it can be called: no required key is missing."""
        return self.api_key_missing is None

    def runs_locally(self, target: Target) -> bool:
        """Whether `target`, one of its models, runs on the operator's own hardware, and sends no data elsewhere."""
        return self.local and not (self.kind == "ollama" and is_ollama_cloud(target.model))

    @property
    def loads_models(self) -> bool:
        """Whether it is a server of the operator's own that may load models on demand, so that it is polled."""
        return self.local and (self.kind == "openai" or (self.kind == "ollama" and self.api == "native"))


ModelKey = tuple[str, str]
"""One model of one Ollama: the server's address, and the model's canonical name."""


def model_key(provider: ProviderConfig, model: str) -> ModelKey:
    return provider.base_url or provider.name, ollama_name(model)


@frozen
class Config:
    """Both files, checked and resolved."""

    listen: Listen
    default_provider: str | None
    """The provider for bare model names."""
    limits: Limits
    answers: Answers
    health: HealthSettings
    timeouts: Timeouts
    streaming: Streaming
    metrics: Metrics
    log: Log
    cors: Cors
    auth: Auth
    providers: Mapping[str, ProviderConfig]
    aliases: Mapping[str, Chain]
    """By full name (``mana/fast-text``)."""
    default: str | None
    """The alias for requests that name no model."""
    path: Path
    alias_prefix: str = "mana/"
    chain_timeout: float = 0.0
    """Max seconds of a walk along a chain; 0: no limit. Chains have it resolved already, see `Chain.timeout`."""
    found: tuple[DiscoveredServer, ...] = ()
    """Servers that were added to the files' providers, so that a reload adds them again."""
    notes: tuple[str, ...] = ()
    """Remarks for ``check`` on values that were accepted although they look like slips."""
    responses: Responses = Responses()
    cache: Cache = Cache()
    state: str | None = field(default=None, repr=False)
    """URL of a Redis through which workers and instances share state; None: nothing is shared."""
    traces: Traces = Traces()
    status_page: bool = False
    """Without client keys: whether operators' pages are shown to other machines."""
    windows: Mapping[ModelKey, Mapping[str, Any]] = field(factory=dict)
    """Options that each model of an Ollama is loaded with, as far as aliases set them."""

    warm: tuple[Entry, ...] = ()
    """Models to keep loaded, with the options that their requests will have."""
    prices: Mapping[Target, Price] = field(factory=dict)
    """Prices in the files."""
    spend_file: Path | None = None
    """The file that keeps spending; None: a file in systemd's StateDirectory, if there is one."""
    uses_price_list: bool = False
    """Whether prices are needed that are not in the files."""

    @property
    def has_budgets(self) -> bool:
        """Whether any key or alias has a budget."""
        return any(key.budget for key in self.auth.keys) or any(chain.budget for chain in self.aliases.values())

    def price_of(self, target: Target) -> Price | None:
        """The price of `target`; None: unknown."""
        if self.prices and (given := self.prices.get(target)) is not None:
            return given
        provider = self.providers[target.provider]
        if provider.kind == "loopback":
            return FREE
        if provider.runs_locally(target):
            return Price(provider.electricity, provider.electricity) if provider.electricity else FREE
        if not self.uses_price_list:
            return None
        return listed_price(provider.base_url or (GOOGLE if provider.kind == "google" else ""), target.model)

    def options_of(self, target: Target) -> Mapping[str, Any]:
        """Options for a target that a client names directly: with the window that the aliases set."""
        provider = self.providers[target.provider]
        if not self.windows or provider.kind != "ollama":
            return provider.options
        return {**provider.options, **self.windows.get(model_key(provider, target.model), {})}

    @property
    def door_bounds(self) -> DoorBounds:
        return DoorBounds(self.answers.limits.all_items, self.limits.messages, self.limits.body, self.limits.keys)

    @property
    def caches(self) -> bool:
        """Whether any answers are cached."""
        chains = self.aliases.values()
        return any(chain.cache for chain in chains) or any(each.cache for each in self.providers.values())

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach it."""
        return self.listen.unix is None and not is_loopback(self.listen.host)
