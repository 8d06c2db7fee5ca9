"""Explains why providers did not serve, and how to fix it: for the 503, for loopback's answer, for the start screen.

Most texts name addresses and models, so they are for the operator only: if client keys exist, clients do not get them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from manallm_proxy.config.model import ProviderConfig
from manallm_proxy.contract.attempts import AttemptRecord, NoProvider
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider_errors import NO_TLS, NOT_TRUSTED, UNKNOWN_HOST, MissingModel
from manallm_proxy.contract.targets import Chain, Entry, Target
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.generation import LATEST, Generation
from manallm_proxy.routing.catalog import short_name
from manallm_proxy.routing.circuit import NO_MODEL

NAMED_LIMIT: Final = 5
"""Max models that a sentence lists."""
UNREACHED: Final = frozenset({"connect_error", "connect_timeout"})


def add_advice(error: ProxyError, generation: Generation, chain: Chain, asked: str, caller: Caller | None) -> None:
    """Adds to the message of `error` what mends it: a 503 for the operator, a wrong name for everyone.

    `asked`: the model as the request names it.
    """
    if isinstance(error, NoProvider):
        if error.status == 503 and caller is None:
            added = advice(generation, chain, error.attempts, repeats=False)
            error.message += f". {added}" if added else ""
    elif isinstance(error, MissingModel) and chain.alias is None and "/" not in asked:
        meant = f"{generation.config.alias_prefix}{asked.removesuffix(LATEST)}"
        known = meant in generation.config.aliases and (caller is None or generation.may_use(caller, meant))
        where = f"a name without a provider is looked for at {chain.entries[0].target.provider}"
        error.message += f". Did you mean {meant}?" if known else ""
        error.message += f" ({where}; GET /v1/models lists what is served here)"


def advice(generation: Generation, chain: Chain, records: Iterable[AttemptRecord], *, repeats: bool = True) -> str:
    """A sentence for each target that did not serve, and one for all providers that only lack their key.

    `repeats`: also where nothing can be said but the reason of the attempt log.
    """
    sentences: list[str] = []
    unset: list[str] = []
    for record in records:
        target = Target.parse(record.model)
        provider = generation.config.providers[target.provider]
        if record.reason == "unconfigured":
            unset.append((provider.api_key_missing or "").removesuffix(" is not set"))
            continue
        entry = next((entry for entry in chain if str(entry.target) == record.model), None)
        if sentence := _sentence(generation, provider, target, entry, record, repeats=repeats):
            sentences.append(sentence)
    if unset:
        sentences.append(f"Not set: {', '.join(dict.fromkeys(unset))}.")
    return " ".join(dict.fromkeys(sentences))


def unreached(provider: ProviderConfig, reason: str | None, detail: str | None = None) -> str:
    """``nothing answers at http://127.0.0.1:11434 (refused): 'ollama serve' starts it, or correct base_url``."""
    why = detail or ("no answer in time" if reason == "connect_timeout" else "no connection")
    url = provider.base_url
    if url is None:
        return f"it cannot be reached ({why})"
    if provider.proxy is not None:  # which may be what is wrong; it may hold a password
        return f"no connection to {url} through its forward proxy ({why}): correct `proxy`, or base_url"
    if why == UNKNOWN_HOST:
        return f"the host name in {url} cannot be looked up: correct base_url, or mend this machine's DNS"
    if why == NO_TLS:
        return f"what answers at {url} speaks no TLS: correct base_url, which may have to begin with http://"
    if why.startswith(NOT_TRUSTED):
        mend = "renew it, or have this machine trust its authority"
        return f"the TLS certificate of {url} is not trusted ({why.removeprefix(NOT_TRUSTED)}): {mend}"
    start = "'ollama serve' starts it" if provider.kind == "ollama" else "start it"
    return f"nothing answers at {url} ({why}): {start}, or correct base_url"


def missing(generation: Generation, wish: str, provider: ProviderConfig) -> str | None:
    """That the provider does not have the model `wish`, and how to get it; None if it has it, or lists nothing."""
    target = Target(provider.name, wish)
    if not generation.catalog.knows(provider.name) or generation.catalog.find(target) is not None:
        return None
    if provider.kind == "ollama":
        return f"{wish} is not installed: ollama pull {wish}"
    return f"{wish} is not in its list"


def preferred_model(entry: Entry) -> str | None:
    """The first model that an open entry prefers by name, if any."""
    first = entry.prefer[0] if entry.prefer else None
    return first if first is not None and "*" not in first else None


def listed(generation: Generation, provider: str) -> str:
    """The models of a provider, formatted for a sentence."""
    names = [short_name(model.id) for model in generation.catalog.models(provider)]
    more = len(names) - NAMED_LIMIT
    return ", ".join(names[:NAMED_LIMIT]) + (f" and {more} more" if more > 0 else "")


def _sentence(
    generation: Generation,
    provider: ProviderConfig,
    target: Target,
    entry: Entry | None,
    record: AttemptRecord,
    *,
    repeats: bool,
) -> str:
    """What mends it, or at least the reason; empty if that is known from `record`, and not to be repeated."""
    reason, detail = record.reason, record.detail
    health = generation.registry.providers[target.provider]
    down = health.provider.last_error if health.provider.failures else None
    if reason == "unhealthy" or (reason == NO_MODEL and down in UNREACHED):
        # its list is unknown, which does not mean that it lacks the model
        reason, detail = _last_error(generation, target), health.reach_detail
    if reason in UNREACHED:
        return f"{provider.name}: {unreached(provider, reason, detail)}."
    if reason == NO_MODEL:
        wish = preferred_model(entry) if entry is not None else None
        get = f"; 'ollama pull {wish or 'MODEL'}' gets one" if provider.kind == "ollama" else ""
        return f"{provider.name}: {detail}{get}."
    if reason == "http_404" and (lacks := missing(generation, target.model, provider)):
        return f"{provider.name}: {lacks} (it has {listed(generation, provider.name)})."
    known = () if repeats else (record.reason, record.detail)
    words = ", ".join(str(part) for part in (reason, detail) if part and part not in known)
    return f"{target}: {words}." if words else ""


def _last_error(generation: Generation, target: Target) -> str:
    health = generation.registry.providers[target.provider]
    circuits = (health.provider, health.targets.get(target.model))
    return next((c.last_error for c in circuits if c is not None and c.last_error), "unhealthy")


def keys_not_set(providers: Sequence[ProviderConfig]) -> list[str]:
    """The environment variables that hold the missing keys of `providers`."""
    return [p.api_key_missing.removesuffix(" is not set") for p in providers if p.api_key_missing]
