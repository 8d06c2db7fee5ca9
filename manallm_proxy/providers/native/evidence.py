"""As `mending.evidence`, of refusals of requests that are a client's own.

Anthropic refuses the same words where something stands in the wrong place (``cache_control`` of a thought, or of a
turn) or has an odd value: of that nothing is learned, or one slip would take the caching of their prompts from all.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import DecodeErrors, decode, holds
from manallm_proxy.openai.rows import Row, read_rows
from manallm_proxy.providers.mending.evidence import GAP, NO_KEY, OF_DEVELOPER, patterns
from manallm_proxy.providers.native import hints
from manallm_proxy.providers.native.history import DEVELOPERS, MISSED, UNSIGNED
from manallm_proxy.providers.native.response_hints import RESPONSE_HINTS

LEARNED: Final = {
    DEVELOPERS: OF_DEVELOPER,
    UNSIGNED: rb"signature%bin %bthinking|thinking\.signature|(?:corrupted|invalid|missing a) thought"
    rb"|thought[ _]?signature is not" % (GAP, GAP),
    MISSED: rb"must be passed back|(?:reasoning_content|thinking)%b(?:(?!reasoning_content|thinking)[^{}]){0,480}?"
    rb"is missing" % NO_KEY,
    hints.BUDGETS: rb"thinking\.type\.enabled",
    hints.ADAPTIVE: rb"adaptive thinking%bis|thinking\.type\.adaptive|tag %badaptive" % (GAP, GAP),
    hints.EFFORT: rb"not support (?:the|reasoning) effort|output_config(?:\.effort)?:",
    hints.EDITING: rb"\bcontext_management\b%b" % NO_KEY,
    **{what: rb"\b%b\b%b" % (what.encode(), NO_KEY) for what in hints.OF_TOOLS},
    **dict.fromkeys((hints.CACHING, hints.HOURS), rb"\bcache_control\b%b" % NO_KEY),
    **dict.fromkeys(RESPONSE_HINTS, rb"unsupported parameter|encrypted content is not"),
}
"""By what may be learned: words of its refusals, as they may be in a text of a request, but not as its keys."""
_PATTERNS: Final = patterns(LEARNED)
_EPHEMERAL: Final = {"type": "ephemeral"}
_CACHES: Final = (_EPHEMERAL, {**_EPHEMERAL, "ttl": "5m"}, {**_EPHEMERAL, "ttl": "1h"})
_CACHED: Final = (b'"text"', b'"image"', b'"document"', b'"tool_use"', b'"tool_result"')
"""Types of blocks that are cached."""
_OWN_TOOLS: Final = (msgspec.Raw(b"null"), msgspec.Raw(b'"custom"'))
_OF_TOOLS: Final = re.compile(rb"true|false|null|\[.*\]", re.DOTALL)


def is_for_all(call: Call, what: str) -> bool:
    """Whether `what`, refused of `call`, is refused of all: no text of the caller has the refusal's words, and it
    stands where all clients have it."""
    if what not in _PATTERNS or holds(call.body, _PATTERNS[what]):
        return False
    try:
        if what in (hints.CACHING, hints.HOURS):
            turns = _rows(call, "messages")
            return (
                not any(hints.CACHING in turn for turn in turns)
                and all(map(_is_cached, [*_rows(call, "system"), *_blocks(turns)]))
                and all(map(_has_usual_caching, _rows(call, "tools")))
            )
        return what not in hints.OF_TOOLS or all(_is_usual(tool, what) for tool in _rows(call, "tools"))
    except DecodeErrors:
        return False


def _rows(call: Call, key: str) -> list[Row]:
    span = call.summary.spans.get(key)
    return [] if span is None or call.body[span[0] : span[0] + 1] != b"[" else read_rows(call.body, span)


def _blocks(rows: list[Row]) -> list[Row]:
    """The blocks inside of turns, or of results."""
    inside = [content for row in rows if (content := bytes(row.get("content", b""))).startswith(b"[")]
    return [block for content in inside for block in read_rows(content)]


def _is_cached(row: Row) -> bool:
    """Whether a block has caching as all may have it, or none; so have the blocks inside of it."""
    is_odd = hints.CACHING in row and bytes(row.get("type", b"")) not in _CACHED
    return not is_odd and _has_usual_caching(row) and all(map(_is_cached, _blocks([row])))


def _has_usual_caching(row: Row) -> bool:
    return hints.CACHING not in row or decode(bytes(row[hints.CACHING])) in _CACHES


def _is_usual(tool: Row, member: str) -> bool:
    """Whether a tool has that `member` as all may have it, or not at all."""
    if member not in tool:
        return True
    return tool.get("type", _OWN_TOOLS[0]) in _OWN_TOOLS and _OF_TOOLS.fullmatch(bytes(tool[member])) is not None
