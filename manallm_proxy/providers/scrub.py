"""Cleans a provider's error message for clients: bounded, on one line, without markup and without keys."""

from __future__ import annotations

import re
from typing import Final

from manallm_proxy.contract.provider_errors import ProviderError

MESSAGE_LIMIT: Final = 500
"""Max characters of a message, or of one of its codes."""
_READ_LIMIT: Final = 4 * MESSAGE_LIMIT
_CUT: Final = "…"
_REDACTED: Final = "[redacted]"
_SHORTEST_REST: Final = 4
"""Min characters of a secret's beginning that are removed if a cut has left no more of it."""

_KEY_LIKE: Final = re.compile(r"\b(?:sk|gsk|pk|key|AIza|tgp|xai|hf|r8)[-_A-Za-z0-9]{12,}|Bearer\s+\S+", re.ASCII)
_PAGE: Final = re.compile(
    r"<(?:[!?]|/?(?:html|head|body|title|script|style|center|h[1-6]|div|p|br|hr|pre)\b)", re.IGNORECASE
)


def clean(message: str) -> str:
    """A provider's message as a client may see it. A cut one ends in an ellipsis, which `redact_secrets` needs."""
    cut = len(message) > _READ_LIMIT
    text = " ".join(message[:_READ_LIMIT].split()).lstrip("\ufeff")
    if text[:1] == "<":
        return ""
    if (page := _PAGE.search(text)) is not None:
        text, cut = text[: page.start()].rstrip(), False
    text = _KEY_LIKE.sub(_REDACTED, text)
    return text[: MESSAGE_LIMIT - 1] + _CUT if cut or len(text) > MESSAGE_LIMIT else text


def redact_secrets(error: ProviderError, *secrets: str | None) -> ProviderError:
    """`error` with our secrets removed from all of its fields, in case the provider quoted one.

    `clean` must have run before: it may have redacted a part of a secret, or cut one in two.
    """
    forms = {form for secret in secrets if secret for form in (secret, _KEY_LIKE.sub(_REDACTED, secret))}
    known = sorted(forms - {_REDACTED}, key=len, reverse=True)  # a whole secret before its parts
    for name in ("message", "type", "code", "param", "detail", "raw_message"):
        text = getattr(error, name)
        if text and known:
            setattr(error, name, _without(text, known))
    error.args = (error.message,)
    return error


def _without(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, _REDACTED)
    if not text.endswith(_CUT):
        return text
    for secret in secrets:  # a cut within a secret has left its beginning
        shown = text[: -len(_CUT)]
        for length in range(min(len(secret) - 1, len(shown)), _SHORTEST_REST - 1, -1):
            if shown.endswith(secret[:length]):
                text = shown[:-length] + _REDACTED + _CUT
                break
    return text
