"""A request in OpenAI's format: reads what routing needs, and rewrites the request for one target.

It is parsed once: msgspec checks the syntax of the whole body; the top-level values stay bytes with known positions,
so that an OpenAI-compatible provider gets the client's own body with nothing but ``model`` (and ``stream_options``)
replaced.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import VISION, RequestSummary, Span
from manallm_proxy.contract.shortened import Shortened
from manallm_proxy.contract.spliced import Body, Spliced
from manallm_proxy.openai.joined import SMALL, joined_bytes
from manallm_proxy.openai.json_object import (
    BOM,
    DecodeErrors,
    contains,
    decode,
    decode_leniently,
    encode,
    encode_whole,
    holds,
    split_object,
)
from manallm_proxy.openai.long_values import MOST

TOOLS, EMBEDDING = "tools", "embedding"
"""Capabilities that a request may need and a provider's model list may deny."""

_ROUTED: Final = frozenset(
    ("model", "stream", "stream_options", "messages", "prompt", "input", "tools", "encoding_format")
)
"""Keys that decide where a request goes and how its answer is read."""
_KNOWN: Final = _ROUTED | {
    *("instructions", "max_tokens", "max_completion_tokens", "metadata", "reasoning", "store", "system"),
    *("temperature", "text", "tool_choice", "top_p"),
}
"""And others that most requests have, none of which is like one of those."""
_LENGTHS: Final = frozenset(map(len, _ROUTED))
_NOTHING: Final[frozenset[str]] = frozenset()
_NO_TOOLS: Final = re.compile(rb"null|\[\s*\]")
_IMAGE_URL: Final = b'"image_url"'
SHORT: Final = 16 * 1024
"""Max bytes of a body that may be copied twice."""
_SEARCHED: Final = 2048
"""Max bytes of a body in which images are looked for at once: that takes no longer than to keep the question."""
_LONGEST: Final = 64 * 1024
"""Max bytes of a value that routing reads: a model's name, or what is asked of a stream."""
_UNDERSCORES: Final = 50
"""With more underscores than this, searching for the whole word is cheaper."""
_IMAGE: Final = re.compile(rb'"type"\s*:\s*"(?:image_url|input_image)"')
"""An image part, in chats and in Responses."""

_TRUE: Final = msgspec.Raw(b"true")
_FALSE: Final = msgspec.Raw(b"false")
_TYPES: Final = {b'"': str, b"{": dict, b"[": list, b"t": bool, b"f": bool, b"n": type(None)}
"""Type by the first byte of a JSON value; any other byte begins a number."""
_TYPE_NAMES: Final[dict[type, str]] = {
    str: "a string",
    bool: "true or false",
    dict: "an object",
    list: "an array",
    int: "a number",
    type(None): "null",
}


def read_summary(
    body: bytes,
    required: tuple[str, type | tuple[type, ...]],
    need: str | None = None,
    short: Shortened | None = None,
    has_images: Callable[[bytes, msgspec.Raw], bool] | None = None,
    *,
    keys: int = sys.maxsize,
) -> RequestSummary:
    """Reads what routing needs from a request body, in one pass.

    `required` is the endpoint's one required key, and the types that it may have; `need` a capability that the endpoint
    itself needs; `short` the short form of a long body, if known; `has_images`, given the body and the required value,
    returns whether there are images, and is called only when that matters (None for chats, and where there are none);
    `keys` how many a short body may have at its top, if nobody has counted them.

    Raises InvalidRequest, with ``param`` if one is at fault, if the body is no JSON object, nested too deeply, or has
    a duplicate top-level key, or if ``model``, ``stream``, ``stream_options`` or the required key has the wrong type.
    """
    values, spans = split_object(body, short=short, keys=keys)
    refuse_case_variants(values)
    model = _typed(values, "model", str) or ""
    stream = False
    if "stream" in values and (flag := values["stream"]) != _FALSE:
        stream = flag == _TRUE or _typed(values, "stream", bool) or False
    key, kinds = required
    if key not in values:
        raise InvalidRequest(f"'{key}' is missing", param=key)
    _check_type(body[spans[key][0] : spans[key][0] + 1], key, kinds)
    options = _typed(values, "stream_options", dict) if "stream_options" in values else None
    needs = {need} if need else set()
    if "tools" in values and not _NO_TOOLS.fullmatch(values["tools"]):
        needs.add(TOOLS)
    later: Callable[[], bool] | None = None
    check = has_images or (has_image_parts if key == "messages" else None)
    if check is not None:
        if len(body) <= MOST and (check is has_images or len(body) > _SEARCHED):  # above `MOST`, a thread reads it
            later = partial(check, body, values[key])
        elif check(body, values[key]):
            needs.add(VISION)
    wants_usage = bool(options and options.get("include_usage") is True)
    return RequestSummary(model, stream, wants_usage, frozenset(needs), spans, later)


def made_request(
    fields: Mapping[str, Any],
    required: tuple[str, type | tuple[type, ...]],
    need: str | None = None,
    *,
    large: bool,
    encode_large: Callable[[Any], bytes] = encode_whole,
) -> tuple[bytes, RequestSummary]:
    """The body of a request made by a door, and its summary as `read_summary` returns it, usually without parsing.

    `fields`: of valid types, with names that need no escapes. `large`: encodes in several short calls, by
    `encode_large`. Raises RecursionError if it is nested too deeply.
    """
    if large:
        body = encode_large(fields)
        return body, read_summary(body, required, need)
    values: dict[str, msgspec.Raw] = {}
    spans: dict[str, Span] = {}
    at = 0
    for key, value in fields.items():
        data = encode(value)
        start = at + len(key) + len('{"":')  # or a comma in place of the brace
        spans[key] = (start, at := start + len(data))
        values[key] = msgspec.Raw(data)
    body = encode(values)
    needs = frozenset((need,)) if need else _NOTHING
    if fields.get("tools"):
        needs |= {TOOLS}
    inside = memoryview(body)[slice(*spans["messages"])] if "messages" in spans else None
    later = partial(has_image_parts, body, inside) if inside is not None else None
    return body, RequestSummary(fields.get("model") or "", fields.get("stream") is True, False, needs, spans, later)


def has_image_parts(body: bytes, value: msgspec.Raw | memoryview) -> bool:
    """Whether there is an image in `value`, a member of `body`: the messages of a chat, or the input of a response."""
    return may_have_images(body) and holds(value, _IMAGE)


def may_have_images(body: bytes) -> bool:
    """Whether ``"image_url"`` occurs. Prose has few underscores, and finding one takes a fiftieth of the time."""
    at = body.find(b"_")
    for _ in range(_UNDERSCORES):
        if at < 0 or body.startswith(_IMAGE_URL, max(at - len(b'"image'), 0)):
            return at >= 0
        at = body.find(b"_", at + 1)
    return at >= 0 and contains(body, _IMAGE_URL)


def refuse_case_variants(keys: Iterable[str]) -> None:
    """Raises InvalidRequest for a key that differs only in case from one that routing uses.

    Servers written in Go ignore case (encoding/json), and match U+017F as s and U+212A as k: they might use this key
    where we use the other, and so serve a model that the client's key does not allow.
    """
    for key in frozenset(keys) - _KNOWN:
        if len(key) in _LENGTHS and (meant := key.casefold()) in _ROUTED:
            raise InvalidRequest(f"'{key}' is not '{meant}': keys are told apart by case", param=key)


def rewrite(summary: RequestSummary, body: bytes, model: str, *, ask_usage: bool = False) -> Body:
    """`body` for one target: its ``model`` replaced, ``stream_options.include_usage`` set if asked for."""
    model_span = summary.spans.get("model")
    if model_span is not None and not ask_usage and len(body) <= SHORT and body.startswith(b"{"):  # as most are
        return body[: model_span[0]] + encode(model) + body[model_span[1] :]
    edits: list[tuple[Span, bytes]] = []
    brace = body.index(b"{") + 1
    front = b""
    if model_span is not None:
        edits.append((model_span, encode(model)))
    else:
        front += b'"model":' + encode(model) + b","
    if ask_usage:
        span = summary.spans.get("stream_options")
        if span is None:
            front += b'"stream_options":{"include_usage":true},'
        else:
            options = decode_leniently(body[span[0] : span[1]]) or {}
            edits.append((span, encode({**options, "include_usage": True})))
    rest = memoryview(body)  # its slices are no copies
    parts: list[bytes | memoryview] = [body[:brace].removeprefix(BOM) + front]
    at = brace
    for (start, end), value in sorted(edits):
        parts += [rest[at:start], value]
        at = end
    parts.append(rest[at:])
    return b"".join(parts) if len(body) <= SHORT else Spliced(tuple(parts))


def spliced(body: bytes, spans: Mapping[str, Span], values: Mapping[str, bytes]) -> tuple[bytes, dict[str, Span]]:
    """The JSON object `body`, whose values are at `spans`, with the JSON `values` replaced or added.

    Also returns the new spans.
    """
    brace = body.index(b"{") + 1
    front = b"".join([b"%b:%b," % (encode(key), value) for key, value in values.items() if key not in spans])
    if not spans:
        front = front[:-1]
    rest = memoryview(body)  # its slices are no copies
    parts: list[bytes | memoryview] = [body[:brace].removeprefix(BOM), front]
    at = brace
    moved: dict[str, Span] = {}
    shift = len(parts[0]) - brace + len(front)
    for (start, end), key in sorted((span, key) for key, span in spans.items()):
        new = values.get(key)
        if new is None:
            moved[key] = (start + shift, end + shift)
            continue
        parts += [rest[at:start], new]
        moved[key] = (start + shift, start + shift + len(new))
        shift += len(new) - (end - start)
        at = end
    parts.append(rest[at:])
    return b"".join(parts) if len(body) <= SMALL else joined_bytes(parts), moved


def _check_type(first: bytes, key: str, kinds: type | tuple[type, ...]) -> None:
    """Raises InvalidRequest if a value is of none of `kinds`, judged by its byte `first`, since it may be megabytes."""
    kind = _TYPES.get(first, int)
    if kind is not kinds and (type(kinds) is not tuple or kind not in kinds):
        wanted = " or ".join(_TYPE_NAMES[k] for k in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise InvalidRequest(f"'{key}' must be {wanted}", param=key)


def _typed(values: dict[str, msgspec.Raw], key: str, kind: type) -> Any:
    """The value of `key`; None if it is missing or null. Raises InvalidRequest if it is of another type."""
    raw = values.get(key)
    if raw is None:
        return None
    if len(raw) > _LONGEST:
        _check_type(memoryview(raw)[:1].tobytes(), key, kind)
        raise InvalidRequest(f"'{key}' is longer than {_LONGEST} bytes", param=key)
    try:
        value = decode(raw)
    except DecodeErrors:  # among others for numbers of thousands of digits
        _check_type(memoryview(raw)[:1].tobytes(), key, kind)
        raise InvalidRequest(f"'{key}' is not valid JSON", param=key) from None
    if value is not None and type(value) is not kind:
        raise InvalidRequest(f"'{key}' must be {_TYPE_NAMES[kind]}", param=key)
    return value
