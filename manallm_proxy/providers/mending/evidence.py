"""Whether a refusal shows what a model refuses of everyone, so that it may be learned, or only of this one request.

Providers quote what they refuse, which a caller may have written, or a page that its model has read. A history with an
odd member, or with the words of a refusal in a text, would change what the model gets of all other callers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import DecodeErrors, holds
from manallm_proxy.openai.rows import Row, read_rows
from manallm_proxy.providers.max_tokens import NEWER, OLDER
from manallm_proxy.providers.mending.effort import BESIDE_TOOLS, FIELD
from manallm_proxy.providers.mending.history import EXTRAS, IDS, NEEDED, REASONING, SIGNATURES
from manallm_proxy.providers.mending.refused_fields import BESIDE_TEMPERATURE, TEMPERATURE, TOP_K, TOP_P
from manallm_proxy.providers.mending.tool_schemas import JOINED, SCHEMAS
from manallm_proxy.providers.mending.turns import ALTERNATE, DEVELOPER, ONE_SYSTEM, TURNS
from manallm_proxy.providers.mending.unknown_names import is_unknown

NO_KEY: Final = rb"(?!\"\s*:)"
_QUOTED: Final = rb"(?:['`\\.\"]|\\u0027)(?:%b)(?:['`\\:]|\"(?!\s*:))"
"""In quotes of a text, where they are escaped or not, or a text that begins or ends with it; but not a key."""
GAP: Final = rb"(?:\\u[0-9a-f]{4}|\\[bfnrt]|\W){0,8}"
"""Up to four characters that are no letters, as JSON may have them in a text."""
OF_DEVELOPER: Final = rb"(?:variant|tag) %bdeveloper|unexpected message role|developer%b(?:role )?is not" % (GAP, GAP)
LEARNED: Final = {
    TURNS: rb"unexpected role",
    ALTERNATE: rb"(?:must|should) alternate",
    DEVELOPER: OF_DEVELOPER,
    ONE_SYSTEM: rb"system message must be",
    IDS: rb"call id was|string (?:too long|should)",
    REASONING: rb"reasoning_(?:content|details)%b|%b" % (NO_KEY, _QUOTED % b"reasoning"),
    SIGNATURES: rb"extra_content%b" % NO_KEY,
    EXTRAS: rb"%b|not a string: null" % (_QUOTED % b"annotations|audio|function_call|images|refusal"),
    **dict.fromkeys(
        NEEDED,
        rb"must be passed back|reasoning(?:(?!reasoning)[^{}]){0,480}?is missing|missing.{1,24}reasoning_content%b"
        % NO_KEY,
    ),
    OLDER: rb"max_tokens%b" % NO_KEY,
    NEWER: rb"max_completion_tokens%b" % NO_KEY,
    TOP_K: rb"top_k%b" % NO_KEY,
    **dict.fromkeys(
        (TEMPERATURE, TOP_P, BESIDE_TEMPERATURE),
        rb"(?:temperature|top_p)%b(?:%bis unsupported|(?:(?!temperature|top_p)[^{}]){0,360}?"
        rb"(?:not support|is allowed|deprecated for|cannot both))" % (NO_KEY, GAP),
    ),
    FIELD: rb"reasoning_?effort%b" % NO_KEY,
    BESIDE_TOOLS: rb"reasoning_effort (?:are|to)",
    **dict.fromkeys(
        (SCHEMAS, JOINED),
        rb"missing properties|schema must|root must be|top level|(?:parameters|input_schema)%b%b(?:type|properties)"
        % (NO_KEY, GAP),
    ),
}
"""By what may be learned: words of its refusals, as they may be in a text of a request, but not as its keys."""
_HIDDEN: Final = rb"\\u00(?!26|27|3[ce])[2-7]"
"""Letters may be escaped, which would hide words. Some writers of JSON escape ``&'<>``."""


def patterns(learned: Mapping[str, bytes]) -> dict[str, re.Pattern[bytes]]:
    """What finds the words of ``learned`` in a request, and any that may be hidden there."""
    return {
        what: re.compile(rb"%b|%b" % (words, _HIDDEN), re.IGNORECASE | re.DOTALL) for what, words in learned.items()
    }


_PATTERNS: Final = patterns(LEARNED)
_NULL: Final = msgspec.Raw(b"null")
_TEXT, _NONE = re.compile(rb'null|"'), re.compile(rb"(?:null|\[\s*\])\Z")
_USUAL: Final = {
    REASONING: {"reasoning": _TEXT, "reasoning_content": _TEXT, "reasoning_details": _NONE},
    EXTRAS: {"annotations": _NONE, "audio": _NONE, "images": _NONE, "refusal": _TEXT},
}
_LENGTH: Final = re.compile(rb"(?:1\d|[1-9])?\d{1,4}")
_VALUES: Final = {
    TOP_K: re.compile(rb"[1-9]\d{0,2}"),
    **dict.fromkeys((TEMPERATURE, TOP_P), re.compile(rb"0(?:\.\d{1,17})?|1(?:\.0{1,17})?")),
    OLDER: _LENGTH,
    NEWER: _LENGTH,
    FIELD: re.compile(rb'"(?:low|medium|high)"'),  # which all models know that know any
}
_SIGNED: Final = re.compile(rb'\{\s*"google"\s*:\s*\{\s*"thought_signature"\s*:\s*"[\w+/=-]*"\s*\}\s*\}')


def is_for_all(call: Call, what: str) -> bool:
    """Whether `what`, refused of `call`, is refused of all: it has there the form that servers give it, and no text of
    the caller has the refusal's words."""
    if holds(call.body, _PATTERNS[what]):
        return False
    if (value := _VALUES.get(what)) is not None:
        asked = call.body[slice(*call.summary.spans[what])].rstrip(b" ")  # after digits that were cut
        return value.fullmatch(asked) is not None
    span = call.summary.spans.get("messages")
    if span is None or what not in (REASONING, EXTRAS, SIGNATURES):
        return True
    try:
        rows = read_rows(call.body, span)
        return all(_is_signed_as_usual(row) if what == SIGNATURES else _is_usual(row, _USUAL[what]) for row in rows)
    except DecodeErrors:
        return False


def _is_usual(row: Row, members: dict[str, re.Pattern[bytes]]) -> bool:
    return all(pattern.match(row[key]) for key, pattern in members.items() if key in row)


def _is_signed_as_usual(row: Row) -> bool:
    calls = read_rows(bytes(row["tool_calls"])) if row.get("tool_calls", _NULL) != _NULL else []
    extras = [bytes(call["extra_content"]) for call in calls if "extra_content" in call]
    return all(_SIGNED.fullmatch(extra) is not None and not is_unknown(extra) for extra in extras)
