"""Masks a provider's error message for the log: it must contain nothing from the request or from a model's output.

A provider may quote the request in any error, in full, cut or escaped. So there are three filters:

1. Only the provider's own failures (`classify.OWN_FAILURES`) keep a message at all. The caller's mistakes go to the
   caller; most messages that quote a prompt are among those.
2. Long quotations, and text after words such as ``raw=``, are masked: they come from the request or from a model.
3. Each word that also occurs in the request is masked, unless it is in `_VOCABULARY`, the usual words of such messages.
   If the request cannot be parsed, or parsing would take long, the log gets no message. Characters outside of ASCII
   that either of them has encoded, as calls and their results mostly are, cannot be compared: they are all masked.

So no word of a prompt is left except those in `_VOCABULARY`. `scrub` has removed our keys before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.openai.json_object import DecodeErrors, decode_leniently
from manallm_proxy.providers.own_fields import with_own_fields

REQUEST_LIMIT: Final = 128 * 1024
VALUES_LIMIT: Final = 8000
WORDS_LIMIT: Final = 24
"""Max bytes of a request to compare with, max values in it, and max words to look up in it: others are masked. Together
some 2 ms."""
_LONGEST: Final = 24
"""Max characters of a word. Longer ones are masked: they are ids or encoded data."""
_MASK: Final = "…"
_QUOTED: Final = re.compile(r"(['\"`])(?:(?!\1).){33,}?(?:\1|$)")
_ECHO: Final = re.compile(
    r"\b((?:raw|input|input_value|content|prompt|text|messages|body|data) ?=|at pos(?:ition)? ?\d*:).*",
    re.IGNORECASE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|.)|%([0-9a-fA-F]{2})", re.DOTALL)
_ENCODED: Final = re.compile(r"\\[ux]|%[0-9a-fA-F]{2}")
"""In a request: JSON inside of a text, or a link; a server may quote it decoded."""
_BYTES: Final = re.compile(r"\\x|%[0-9a-fA-F]{2}")
"""In a message: bytes of a character, each by itself."""
_WORD: Final = re.compile(r"[A-Za-z0-9]+|[^\x00-\x7f]")
_MASKS: Final = re.compile(rf"{_MASK}(?:[^A-Za-z0-9{_MASK}]*{_MASK})+")
_VOCABULARY: Final = frozenset(
    """
    a about above access account active after again all allowed already an and another any api are as at authentication
    authorization available bad be because been before below billing busy but by call can cannot capacity change check
    client closed code complete completion connection content context could cpu credit credits cuda current currently
    daily day days deleted denied deprecated device did disabled does due during empty enable enough error exceed
    exceeded exceeds exist exists exit expected expired failed failure file for forbidden format found free from full
    function gateway get gpu had has have hour hours id if image in insufficient internal invalid is it key killed
    length less limit limited limits list llama load loaded loading local longer lost many max maximum memory message
    messages minute minutes missing model models more most must name need needs new no none not now of off on one only
    open or organization other our out over overloaded path payment per permission plan please process processing prompt
    provider pull quota rate reached reason refused request requested requests require required requires reset resource
    response retry role runner running second seconds server service signal size speed started status stopped stream
    support supported suspended system temporarily terminated than that the there this time timed timeout to token
    tokens too tool tools try trying type unable unauthorized unavailable unexpected unexpectedly unknown upgrade usage
    use used user using valid value was we were when while will with without you your
    """.split()  # noqa: SIM905  # words read better than a column of strings
)


def is_comparable(call: Call) -> bool:
    """Whether messages about `call` can be compared with all that a provider may get of it, in a short time."""
    return len(call.body) <= REQUEST_LIMIT and not (call.ollama and call.is_large)


def compared(call: Call | None) -> bytes:
    """The request that messages about `call` are compared with; empty if they cannot be (None: that is known)."""
    return with_own_fields(call).body if call is not None and is_comparable(call) else b""


def set_provider_message(error: ProviderError, body: bytes) -> None:
    """Sets ``error.provider_message`` from its raw one, for a request with this `body`. Never raises."""
    if error.raw_message and len(body) <= REQUEST_LIMIT and body.count(b",") <= VALUES_LIMIT:
        error.provider_message = mask_request(error.raw_message, body)


def mask_request(text: str, body: bytes) -> str | None:
    """`text` with everything masked that also occurs in `body`, a JSON object; None if nothing readable is left."""
    try:
        request = decode_leniently(body)
    except DecodeErrors:
        return None
    if not isinstance(request, dict):
        return None
    held = "\n".join(_texts({key: value for key, value in request.items() if key != "model"})).casefold()
    is_encoded = _BYTES.search(text) is not None or _ENCODED.search(held) is not None
    text = _ESCAPE.sub(_unescaped, text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = _ECHO.sub(rf"\1 {_MASK}", _QUOTED.sub(_MASK, text))

    known: dict[str, bool] = {}

    def masked(match: re.Match[str]) -> str:
        word = match[0].casefold()
        if word in _VOCABULARY:
            return match[0]
        if word not in known:
            known[word] = (
                (is_encoded and not word.isascii()) or len(known) >= WORDS_LIMIT or len(word) > _LONGEST or word in held
            )
        return _MASK if known[word] else match[0]

    text = _MASKS.sub(_MASK, " ".join(_WORD.sub(masked, text).split()))
    return text if re.search("[A-Za-z0-9]", text) else None


def _unescaped(match: re.Match[str]) -> str:
    """The character that an escape stands for, even if escaped twice; a blank for line breaks and the like."""
    digits = match[1] or match[2] or match[3]
    return chr(int(digits, 16)) if digits else " "


def _texts(value: Any) -> Iterator[str]:
    """Every key, text and number in `value`."""
    rest = [value]
    while rest:
        match rest.pop():
            case dict() as found:
                yield from map(str, found)
                rest.extend(found.values())
            case list() as found:
                rest.extend(found)
            case found:
                yield str(found)
