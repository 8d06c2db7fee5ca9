"""Which model of a provider's list serves an entry such as ``ollama/*``. Pure: the same list, the same choice.

A model *fits* a request if nothing denies a capability that the request needs, and there is evidence for those that
few models have:

1. Where the list names capabilities, they decide: an embedding model never chats, a chat model never embeds.
2. Where it does not, the name does: ``nomic-embed-text`` embeds, ``llava`` sees. Without either sign a model gets no
   embeddings and no images, since a wrong guess is an error that goes to the caller. It does get tools.

Of those that fit, the first in this order is chosen: the earliest pattern of ``prefer``, evidence in the list over that
of a name, this machine's models over an Ollama cloud's, the larger one, the newer one, the name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import compress
from typing import Final

from manallm_proxy.contract.provider import ModelInfo
from manallm_proxy.contract.records import frozen

EMBEDDING, VISION, COMPLETION = "embedding", "vision", "completion"
NAMED_LIMIT: Final = 5
"""Max models that a message lists."""

_EMBEDS: Final = re.compile(
    r"embed|(^|[/_-])(bge|gte|e5|minilm|all-minilm|arctic-embed|jina-embeddings|paraphrase)([/_:.-]|$)|sentence-t"
)
_NO_CHAT: Final = re.compile(
    r"rerank|whisper|(^|[/_-])(tts|asr|ocr|flux|sdxl)([/_:.-]|$)|stable-diffusion|moderation|dall-e|imagen|veo-|lyria"
    r"|speech|transcribe|guard"
)
_SEES: Final = re.compile(
    r"llava|vision|pixtral|moondream|minicpm-v|internvl|molmo|smolvlm|paligemma|(qwen[0-9.]*|[/_:-])-?vl([0-9/_:.-]|$)"
    r"|gemma-?3(:|-)(4|12|27)b|llama-?4|gpt-4o|mistral-small3\.[12]"
)
_BILLIONS: Final = re.compile(r"(?<![a-z0-9.])([0-9]+(?:\.[0-9]+)?)(b|m)(?![a-z0-9])")


def best(
    models: Iterable[ModelInfo], needs: frozenset[str], prefer: Sequence[str] = (), taken: Collection[str] = ()
) -> ModelInfo | None:
    """The model for a request that `needs` these capabilities; None if no model fits.

    `taken`: ids that the chain names explicitly; they are not chosen again, though `models` may list them.
    """
    return Ranked.of(models).best(needs, prefer, taken)


@frozen
class _Candidates:
    """Models for one purpose, best first, whatever is preferred; ``names``: their lower-case ids, in this order.

    ``known`` and ``text`` are the same names: by them a pattern that none matches is found out a few times quicker.
    """

    models: Sequence[ModelInfo] = ()
    names: Sequence[str] = ()
    known: frozenset[str] = frozenset()
    text: str = ""

    @classmethod
    def of(cls, models: Iterable[ModelInfo]) -> _Candidates:
        ranked = sorted(models, key=_rank)
        names = [model.id.lower() for model in ranked]
        return cls(ranked, names, frozenset(names), "\n".join(names))

    def matching(self, text: str) -> Iterable[ModelInfo]:
        """Those that match a pattern of ``prefer``, best first: ``*`` stands for any text; ``:latest`` is implied."""
        name = text.lower()
        if "*" not in text:
            wanted = {name, f"{name}:latest"} & self.known
            return compress(self.models, map(wanted.__contains__, self.names)) if wanted else ()
        if max(name.split("*"), key=len) not in self.text:
            return ()
        return compress(self.models, map(_pattern(text).fullmatch, self.names))


@frozen
class Ranked:
    """A list that is ready to be asked for the best model, in a millisecond also where it has ten thousand.

    To make it takes a hundred milliseconds then.
    """

    _chat: _Candidates = _Candidates()
    _vision: _Candidates = _Candidates()
    _embedding: _Candidates = _Candidates()

    @classmethod
    def of(cls, models: Iterable[ModelInfo]) -> Ranked:
        there = list(models)
        purposes = (frozenset[str](), frozenset({VISION}), frozenset({EMBEDDING}))
        return cls(*(_Candidates.of(model for model in there if fits(model, needs)) for needs in purposes))

    def best(self, needs: frozenset[str], prefer: Sequence[str] = (), taken: Collection[str] = ()) -> ModelInfo | None:
        """See `best`."""
        embeds = EMBEDDING in needs
        candidates = self._embedding if embeds else self._vision if VISION in needs else self._chat
        for some in (*map(candidates.matching, prefer), candidates.models):
            for model in some:
                has = model.capabilities
                if (embeds or has is None or needs <= has) and model.id not in taken:
                    return model
        return None


def fits(model: ModelInfo, needs: frozenset[str]) -> bool:
    """Whether `model` may be chosen for a request that `needs` these capabilities (rules 1 and 2)."""
    name, has = model.id.lower(), model.capabilities
    if EMBEDDING in needs:
        # what lists both (OpenRouter, llama-server) does not say which of them a model is for
        says_so = has is not None and EMBEDDING in has and COMPLETION not in has
        return says_so or ((has is None or EMBEDDING in has) and _EMBEDS.search(name) is not None)
    if _EMBEDS.search(name) or _NO_CHAT.search(name):
        return False
    if has is not None:
        return needs | {COMPLETION} <= has
    return VISION not in needs or _SEES.search(name) is not None


def no_match_reason(
    models: Iterable[ModelInfo],
    needs: frozenset[str],
    taken: Collection[str] = (),
    shown: Callable[[str], str] = str,
) -> str:
    """A short reason for people why `best` found nothing, with the models that are there, each formatted by `shown`."""
    there = [model.id for model in models]
    if not there:
        return "its list holds no model"
    left = [name for name in there if name not in taken]
    if not left:
        return "it lists nothing that the chain does not name"
    what = ", ".join(sorted(needs)) or "chat"
    more = len(left) - NAMED_LIMIT
    named = ", ".join(map(shown, left[:NAMED_LIMIT])) + (f" and {more} more" if more > 0 else "")
    return f"nothing for {what} in its list: {named}"


def needs_of(alias: str) -> frozenset[str]:
    """The capabilities that requests for `alias` likely need, guessed from its name, to show a choice in advance."""
    return frozenset({EMBEDDING}) if "embed" in alias else frozenset({VISION}) if "vision" in alias else frozenset()


def _pattern(text: str) -> re.Pattern[str]:
    """``*`` stands for any text; ``:latest`` is implied, as Ollama has it."""
    parts = ".*".join(re.escape(part) for part in text.lower().split("*"))
    return re.compile(rf"{parts}(:latest)?")


def _rank(model: ModelInfo) -> tuple[object, ...]:
    return (
        model.capabilities is None,
        model.id.lower().endswith(("-cloud", ":cloud")),
        -_size(model),
        -model.created,
        model.id,
    )


def _size(model: ModelInfo) -> float:
    """Bytes as listed; else the number of parameters in the name (``qwen2.5:7b``, ``135m``), at a byte each."""
    if model.size:
        return float(model.size)
    found = _BILLIONS.search(model.id.lower())
    return float(found[1]) * (1e9 if found[2] == "b" else 1e6) if found is not None else 0.0
