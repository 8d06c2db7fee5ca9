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
from typing import Final

from manallm_proxy.contract.provider import ModelInfo

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
    patterns = [_pattern(each) for each in prefer]
    fitting = [model for model in models if model.id not in taken and fits(model, needs)]
    return min(fitting, key=lambda model: _rank(model, patterns), default=None)


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
    return f"nothing for {what} in its list: {_some([*map(shown, left)])}"


def needs_of(alias: str) -> frozenset[str]:
    """The capabilities that requests for `alias` likely need, guessed from its name, to show a choice in advance."""
    return frozenset({EMBEDDING}) if "embed" in alias else frozenset({VISION}) if "vision" in alias else frozenset()


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED_LIMIT
    return ", ".join(names[:NAMED_LIMIT]) + (f" and {more} more" if more > 0 else "")


def _pattern(text: str) -> re.Pattern[str]:
    """``*`` stands for any text; ``:latest`` is implied, as Ollama has it."""
    parts = ".*".join(re.escape(part) for part in text.lower().split("*"))
    return re.compile(rf"{parts}(:latest)?")


def _rank(model: ModelInfo, patterns: Sequence[re.Pattern[str]]) -> tuple[object, ...]:
    name = model.id.lower()
    place = next((n for n, pattern in enumerate(patterns) if pattern.fullmatch(name)), len(patterns))
    return (
        place,
        model.capabilities is None,
        name.endswith(("-cloud", ":cloud")),
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
