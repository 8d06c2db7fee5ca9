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
"""Max characters of a model's name in requests and lists."""
ANY: Final = "*"
"""In place of a model: the best one that the provider lists, see `routing.best_model`."""
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
SMALLEST_WINDOW: Final = 4
"""Tokens: Ollama loads the model with this many where ``num_ctx`` is less (server/sched.go), also if it is 0."""
LOADED_WITH: Final = (*RUNNER_OPTIONS, "shift")
"""If one of these changes, Ollama loads the model again (server/sched.go needsReload)."""
_OLLAMA_PREFIXES: Final = ("registry.ollama.ai/", "library/")
"""Optional before a name, as ``:latest`` is after it (types/model/name.go)."""


def is_model_name(text: str) -> bool:
    """Whether `text` can be a model's name. Names are shown on terminals and sent back: no control characters."""
    return 0 < len(text) <= MODEL_LIMIT and text.isprintable()


@lru_cache(maxsize=1024)
def ollama_name(model: str) -> str:
    """The canonical form of all names that mean the same model to Ollama."""
    bare = model.lower().removesuffix(":latest")
    for prefix in _OLLAMA_PREFIXES:
        bare = bare.removeprefix(prefix)
    return bare


@lru_cache(maxsize=1024)
def is_ollama_cloud(model: str) -> bool:
    """Whether Ollama forwards requests for this model to ollama.com."""
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
        """Whether the model is still to be chosen from the provider's list."""
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
    """Limits of one attempt, in seconds. There is no total: a healthy stream may run for hours."""

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
    """Entries of a chain that share its load as one step of the walk. See `routing.tiers`."""

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
    """What a request does if the model is not loaded: ``wait`` for the load, or try the ``next`` entry at once."""
    load_timeout: float | None = None
    """Max seconds that it waits for the model's load; None: depends on the times of earlier loads."""
    max_wait: float = 1.0
    """Max seconds that it waits for its turn at a local provider; the last entry of a chain waits without a limit."""
    fallback_on: frozenset[str] = frozenset()
    """Error classes (``auth``, ``payment``, ...) or statuses (``"409"``) that lead to a fallback in addition."""
    prefer: tuple[str, ...] = ()
    """For an open target: patterns of preferred models, in this order."""
    unfilled: str | None = None
    """For an open target: why no model could be chosen for this request; None: not tried yet."""
    price: Price | None = field(default=None, repr=False)
    """Price of its tokens; None: unknown, as for an open target before its model is chosen."""
    dimensions: int | None = None
    """Length of its vectors, and so of all vectors of its alias; None: as the first vector."""
    tier: Tier | None = None
    """The tier that it belongs to."""
    weight: int = 1
    """Its share of the tier's requests, relative to the other entries' weights."""
    avoided_price: Price | None = field(default=None, repr=False)
    """For a local target: the price of the next paid entry, which would serve in its place."""


@frozen
class CachePolicy:
    """Which answers are cached, and for how many seconds."""

    ttl: float | None = None
    """For all answers of the alias; None: only embeddings are cached, by their providers' settings."""
    embeddings: Mapping[str, float] = field(factory=dict)
    """For embeddings, by provider."""

    def seconds(self, provider: str, *, is_embedding: bool) -> float | None:
        """How long an answer of `provider` is cached; None: it is not."""
        if self.ttl is not None or not is_embedding:
            return self.ttl
        return self.embeddings.get(provider)


@frozen
class Chain:
    """Entries to try, in order. ``alias``: the name that the client used; None for a plain ``provider/model``."""

    alias: str | None
    entries: tuple[Entry, ...]
    description: str = ""
    timeout: float = 0.0
    """Seconds for the whole walk, up to the commit; 0: no limit."""
    budget: Budget | None = None
    """Budget for all of its requests together."""
    local_only: bool = False
    """Whether only targets on the operator's own hardware may serve."""
    cache: CachePolicy | None = None
    """None: no answer is cached."""
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
        """The path of each entry in the file: ``chain[0]``, ``chain[1].any[2]``. For chains as configured."""
        step, member, before = -1, 0, None
        for entry in self.entries:
            member = member + 1 if entry.tier is not None and entry.tier == before else 0
            step, before = step + (member == 0), entry.tier
            yield f"chain[{step}]" if entry.tier is None else f"chain[{step}].any[{member}]"

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
