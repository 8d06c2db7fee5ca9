"""Targets, and the chains that an alias names.

A *target* is ``provider/model``; everything after the first slash is the model, which may contain more slashes
(``openrouter/anthropic/claude-3-haiku``). A *chain* is an ordered list of entries, each a target with the settings
that apply when it is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, Literal

from attrs import field

from manallm_proxy.contract.budgets import Budget
from manallm_proxy.contract.prices import Price
from manallm_proxy.contract.records import frozen

MODEL_LIMIT: Final = 256
"""Characters of a model's name that is worth asking a provider for, or listing."""
ANY: Final = "*"
"""In place of a model: the best that the provider lists, see `routing.best_model`."""
RUNNER_OPTIONS: Final = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "num_thread",
    "draft_num_predict",
)
OPTION_KINDS: Final[Mapping[str, type]] = {
    **dict.fromkeys(RUNNER_OPTIONS, int),
    "use_mmap": bool,
    **dict.fromkeys(("num_keep", "seed", "num_predict", "top_k", "repeat_last_n"), int),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "temperature", "repeat_penalty"), float),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), float),
    "stop": list,
}
"""api/types.go Options. Ollama answers 500 to another type, and ignores names that it does not know."""
LOADED_WITH: Final = (*RUNNER_OPTIONS, "shift")
"""If one of these changes, Ollama loads the model again (server/sched.go needsReload)."""
_OLLAMA_PREFIXES: Final = ("registry.ollama.ai/", "library/")
"""Optional before a name, as ``:latest`` is after it (types/model/name.go)."""


def is_model_name(text: str) -> bool:
    """Whether a request could name a model so. Names are shown on terminals and sent back: no control characters."""
    return 0 < len(text) <= MODEL_LIMIT and text.isprintable()


@lru_cache(maxsize=1024)
def ollama_name(model: str) -> str:
    """The one form of all names that Ollama takes for the same model."""
    bare = model.lower().removesuffix(":latest")
    for prefix in _OLLAMA_PREFIXES:
        bare = bare.removeprefix(prefix)
    return bare


@lru_cache(maxsize=1024)
def is_ollama_cloud(model: str) -> bool:
    """Whether an Ollama hands this model on to ollama.com, wherever it runs itself."""
    tag = model.rpartition(":")[2].lower()
    return ":" in model and (tag == "cloud" or tag.endswith("-cloud"))


@frozen
class Target:
    """One model of one provider."""

    provider: str
    model: str
    _name: str = field(init=False, repr=False, eq=False)

    @_name.default
    def _joined(self) -> str:
        return f"{self.provider}/{self.model}"

    @property
    def is_open(self) -> bool:
        """Whether the model is still to be chosen from what the provider lists."""
        return self.model == ANY

    @classmethod
    def parse(cls, text: str) -> Target:
        """``"groq/llama-3.1-8b-instant"`` -> Target. Raises ValueError if provider or model is missing."""
        provider, slash, model = text.partition("/")
        if not (provider and slash and model):
            raise ValueError(f"'{text}' is not of the form provider/model")
        return cls(provider, model)

    def __str__(self) -> str:
        return self._name


@frozen
class Timeouts:
    """Bounds on one attempt, in seconds. There is no total: a healthy stream may run for hours."""

    connect: float = 3.0
    """DNS lookup, TCP and TLS."""
    first_byte: float = 120.0
    """From the start of the attempt to the first event with content."""
    idle: float = 60.0
    """Between two chunks after the commit."""


Cold = Literal["wait", "next"]
Strategy = Literal["least_busy", "weighted", "fastest", "sticky"]


@frozen
class Tier:
    """Entries of a chain that stand beside each other, as one step of the walk. See `routing.tiers`."""

    place: int
    """The step in its chain."""
    strategy: Strategy = "least_busy"
    hedge: float | None = None
    """Seconds after which a second target is asked if the first has not begun to answer."""


@frozen
class Entry:
    """One entry of a chain: a target, and how it is tried."""

    target: Target
    timeouts: Timeouts = Timeouts()
    options: Mapping[str, Any] = field(factory=dict)
    """Sent along with every request (kind ollama: ``num_ctx``, ``keep_alive``, ...)."""
    cold: Cold = "wait"
    """What a request does where the model is not loaded: wait for it, or go on to the ``next`` entry at once."""
    load_timeout: float | None = None
    """Seconds that it waits for a model that is not loaded; None: by how long its loads took, generous at first."""
    max_wait: float = 1.0
    """Seconds that it waits for its turn at a local provider; the last entry of a chain waits as long as it takes."""
    fallback_on: frozenset[str] = frozenset()
    """Classes (``auth``, ``payment``, ...) or statuses (``"409"``) that move on although they are not retryable."""
    prefer: tuple[str, ...] = ()
    """Of an open target: patterns of models to choose first, in this order."""
    unfilled: str | None = None
    """Of an open target: why no model could be chosen for this request; None: it was not asked for yet."""
    price: Price | None = field(default=None, repr=False)
    """What its tokens cost; None: not known, or not of an open target before it is filled."""
    dimensions: int | None = None
    """Length of its vectors, and so of all of its alias; None: that of the first one."""
    tier: Tier | None = None
    """The tier that it belongs to."""
    weight: int = 1
    """Its share of the tier's requests, relative to the other entries' weights."""
    avoided_price: Price | None = field(default=None, repr=False)
    """Of a local target: the price of the entry behind it that would be paid if it did not serve."""


@frozen
class CachePolicy:
    """Whose answers are kept, for how many seconds."""

    ttl: float | None = None
    """Of all answers of the alias; None: only embeddings are kept, as their providers say."""
    embeddings: Mapping[str, float] = field(factory=dict)
    """By provider."""

    def seconds(self, provider: str, *, is_embedding: bool) -> float | None:
        """How long an answer of `provider` is kept; None: it is not."""
        if self.ttl is not None or not is_embedding:
            return self.ttl
        return self.embeddings.get(provider)


@frozen
class Chain:
    """What to try, in order. ``alias`` is the name that the client used, None for a plain ``provider/model``."""

    alias: str | None
    entries: tuple[Entry, ...]
    description: str = ""
    timeout: float = 0.0
    """Seconds for the whole walk, up to the commit; 0: no limit."""
    budget: Budget | None = None
    """What all of its requests together may spend."""
    local_only: bool = False
    """Only targets on the operator's own hardware may serve."""
    cache: CachePolicy | None = None
    """None: no answer is kept."""
    is_open: bool = field(init=False, repr=False)
    """Whether an entry's model is still to be chosen."""

    @is_open.default
    def _has_open_entry(self) -> bool:
        return any(entry.target.is_open for entry in self.entries)

    has_tiers: bool = field(init=False, repr=False)

    @has_tiers.default
    def _has_tiered_entry(self) -> bool:
        return any(entry.tier is not None for entry in self.entries)

    def paths(self) -> Iterator[str]:
        """Where each entry stands in the file: ``chain[0]``, ``chain[1].any[2]``. Of a chain as it was read."""
        step, member, before = -1, 0, None
        for entry in self.entries:
            member = member + 1 if entry.tier is not None and entry.tier == before else 0
            step, before = step + (member == 0), entry.tier
            yield f"chain[{step}]" if entry.tier is None else f"chain[{step}].any[{member}]"

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
