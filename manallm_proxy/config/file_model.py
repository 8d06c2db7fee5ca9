"""The contents of ``proxy.yaml`` and ``aliases.yaml`` as written; `model` has the resolved configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field

from manallm_proxy.config.keys_model import Auth, BudgetGiven, Count, Locality
from manallm_proxy.config.model import (
    Answers,
    Api,
    ApiKey,
    BaseUrl,
    Cache,
    Cached,
    Cors,
    Dialect,
    FallbackClass,
    FileName,
    Headers,
    HealthSettings,
    Kind,
    Limits,
    Listen,
    Log,
    Metrics,
    ModelOfProvider,
    OnCpu,
    Options,
    Pattern,
    Prefix,
    ProxyUrl,
    Rate,
    Responses,
    Seconds,
    SecondsOrZero,
    StateUrl,
    Status,
    Streaming,
    Traces,
    Weight,
)
from manallm_proxy.contract.budgets import OnBudget
from manallm_proxy.contract.records import frozen
from manallm_proxy.contract.targets import Cold, Strategy, Timeouts


@frozen
class TimeoutsGiven:
    """``timeouts`` of a file, a provider or an entry; what is missing comes from the level above."""

    connect: Seconds | None = None
    first_byte: Seconds | None = None
    idle: Seconds | None = None

    def over(self, base: Timeouts) -> Timeouts:
        """`base`, overridden by what is given here."""
        return Timeouts(
            connect=base.connect if self.connect is None else self.connect,
            first_byte=base.first_byte if self.first_byte is None else self.first_byte,
            idle=base.idle if self.idle is None else self.idle,
        )


@frozen
class ProviderGiven:
    """One provider."""

    kind: Kind
    base_url: BaseUrl | None = None
    api_key: ApiKey | None = field(default=None, repr=False)
    api_key_file: FileName | None = None
    headers: Headers = field(factory=dict, repr=False)
    timeouts: TimeoutsGiven = TimeoutsGiven()
    max_concurrent: Count | None = None
    api: Api | None = None
    speaks: tuple[Dialect, ...] | None = None
    local: bool = False
    parallel: Count | None = None
    electricity: Rate | None = None
    client_options: bool = False
    degraded_cpu: OnCpu = "last"
    extra_retryable_statuses: tuple[Status, ...] = (408, 498)
    verify_tls: bool = True
    proxy: ProxyUrl | None = field(default=None, repr=False)
    options: Options = field(factory=dict)
    stream_usage: bool = True
    cache: Cached | None = None


@frozen
class PriceGiven:
    """USD per million tokens."""

    input: Rate
    output: Rate = 0.0
    cached: Rate | None = None


@frozen
class EntryGiven:
    """One entry of a chain."""

    target: ModelOfProvider
    timeouts: TimeoutsGiven = TimeoutsGiven()
    options: Options = field(factory=dict)
    cold: Cold = "wait"
    load_timeout: Seconds | None = None
    max_wait: SecondsOrZero = 1.0
    fallback_on: tuple[FallbackClass, ...] | None = None
    prefer: tuple[Pattern, ...] = ()
    price: PriceGiven | None = None
    dimensions: Count | None = None


@frozen
class TierGiven:
    """Targets that are one step of a chain. They are read one by one, by `aliases`, as entries of their own."""

    any: tuple[Any, ...]
    strategy: Strategy = "least_busy"
    weights: tuple[Weight, ...] | None = None
    hedge: Seconds | None = None


@frozen
class AliasGiven:
    """One alias. Its entries are read one by one, by `aliases`."""

    chain: tuple[Any, ...]
    description: str = ""
    fallback_on: tuple[FallbackClass, ...] = ()
    locality: Locality | None = None
    chain_timeout: SecondsOrZero | None = None
    budget: BudgetGiven | None = None
    on_budget: OnBudget | None = None
    cache: Cached | None = None


@frozen
class ProxyFile:
    """``proxy.yaml``. Providers and aliases are read one by one, by `providers` and `aliases`."""

    listen: Listen = Listen()
    aliases_file: FileName | None = None
    default_provider: str | None = None
    alias_prefix: Prefix = "mana/"
    limits: Limits = Limits()
    answers: Answers = Answers()
    health: HealthSettings = HealthSettings()
    timeouts: TimeoutsGiven = TimeoutsGiven()
    chain_timeout: SecondsOrZero = 0.0
    streaming: Streaming = Streaming()
    responses: Responses = Responses()
    cache: Cache = Cache()
    state: StateUrl | None = field(default=None, repr=False)
    metrics: Metrics = Metrics()
    traces: Traces = Traces()
    log: Log = Log()
    cors: Cors = Cors()
    auth: Auth = Auth()
    status_page: bool = False
    providers: Mapping[str, Any] = field(factory=dict)
    aliases: Mapping[str, Any] | None = None
    default: str | None = None
    warm: tuple[ModelOfProvider, ...] = ()
    spend_file: FileName | None = None


@frozen
class AliasesFile:
    """``aliases.yaml``."""

    aliases: Mapping[str, Any] = field(factory=dict)
    default: str | None = None
