"""What we read and build of OpenAI's shapes (openai-python 3.54 types/, openai-node 7.57).

A request is read once and only as far as we route on it: msgspec checks its syntax and tells where each
top-level value lies; the values themselves stay bytes, so that an OpenAI-compatible provider gets the
client's own body with nothing but ``model`` (and ``stream_options``) exchanged.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Final

import msgspec

from manallm_proxy.contract.errors import InvalidRequest, ProxyError
from manallm_proxy.contract.provider import RequestSummary, Span, Usage
from manallm_proxy.contract.provider_errors import ProviderError

encode: Final = msgspec.json.encode
decode: Final = msgspec.json.decode
DecodeErrors: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that msgspec lets out on bad input (libraries.md 10)."""

TOOLS, VISION, EMBEDDING = "tools", "vision", "embedding"
"""Capabilities that a request may need and a provider's listing may deny."""

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KEY: Final = re.compile(rb'[\s,]*"([^"\\]*(?:\\.[^"\\]*)*)"\s*:\s*')
_END: Final = re.compile(rb"\s*\}")
_NO_TOOLS: Final = re.compile(rb"null|\[\s*\]")
_VECTOR: Final = re.compile(rb'"embedding"\s*:\s*(?:\[([^\]]*)\]|"([^"]*)")')
_IMAGE: Final = re.compile(rb'"type"\s*:\s*"image_url"')


def usage_to_openai(usage: Usage) -> dict[str, Any]:
    """The ``usage`` object of an answer; details only where they say something."""
    counted: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }
    if usage.cached:
        counted["prompt_tokens_details"] = {"cached_tokens": usage.cached}
    if usage.reasoning:
        counted["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    return counted


def usage_from_openai(usage: object) -> Usage | None:
    """A ``usage`` object as providers send it; None where it is not an object. Odd values count as 0."""
    if not isinstance(usage, dict):
        return None

    def number(of: object, key: str) -> int:
        value = of.get(key) if isinstance(of, dict) else None
        return value if type(value) is int and value > 0 else 0  # a bool is no number

    return Usage(
        prompt=number(usage, "prompt_tokens"),
        completion=number(usage, "completion_tokens"),
        reasoning=number(usage.get("completion_tokens_details"), "reasoning_tokens"),
        cached=number(usage.get("prompt_tokens_details"), "cached_tokens"),
    )


def read_summary(body: bytes, required: tuple[str, type | tuple[type, ...]], need: str | None = None) -> RequestSummary:
    """Reads what routing needs from a request body, in one pass.

    `required` is the key that the endpoint cannot do without, and the types it may have; `need` a capability
    that the endpoint itself needs. Raises InvalidRequest, with ``param``, for what no provider should be
    bothered with: not JSON, not an object, nested too deeply, a top-level key given twice, a wrong type of
    ``model``, ``stream`` or the required key.
    """
    values, spans = split_object(body)
    model = _typed(values, "model", str) or ""
    stream = _typed(values, "stream", bool) or False
    key, kinds = required
    if key not in values:
        raise InvalidRequest(f"'{key}' is missing", param=key)
    _typed(values, key, kinds, deep=False)
    options = _typed(values, "stream_options", dict) if "stream_options" in values else None
    needs = {need} if need else set()
    if "tools" in values and not _NO_TOOLS.fullmatch(values["tools"]):
        needs.add(TOOLS)
    if key == "messages" and b'"image_url"' in body and _IMAGE.search(values[key]):
        needs.add(VISION)
    wants_usage = bool(options and options.get("include_usage") is True)
    return RequestSummary(model, stream, wants_usage, frozenset(needs), spans)


def rewrite(summary: RequestSummary, body: bytes, model: str, *, ask_usage: bool = False) -> bytes:
    """`body` for one target: its ``model`` replaced, ``stream_options.include_usage`` set if asked for."""
    edits: list[tuple[Span, bytes]] = []
    front = b""
    if "model" in summary.spans:
        edits.append((summary.spans["model"], encode(model)))
    else:
        front += b'"model":' + encode(model) + b","
    if ask_usage:
        span = summary.spans.get("stream_options")
        if span is None:
            front += b'"stream_options":{"include_usage":true},'
        else:
            options = decode(body[span[0] : span[1]]) or {}
            edits.append((span, encode({**options, "include_usage": True})))
    brace = body.index(b"{") + 1
    parts, at = [body[:brace], front], brace
    for (start, end), value in sorted(edits):
        parts += [body[at:start], value]
        at = end
    parts.append(body[at:])
    return b"".join(parts)


def split_object(body: bytes, last: str | None = None) -> tuple[dict[str, msgspec.Raw], dict[str, Span]]:
    """The top-level values of a JSON object, and where each lies, or each up to the key `last`.

    msgspec walks the nesting; we only step from value to value, so the cost is one comparison a
    top-level key, however large the prompt. InvalidRequest for anything but one well-formed object
    with no key twice: the provider would read the other value than we routed by.
    """
    try:
        body.isascii() or body.decode()
        values = _OBJECT.decode(body)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not valid UTF-8") from None
    except msgspec.ValidationError:
        raise InvalidRequest("the body must be a JSON object") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    spans: dict[str, Span] = {}
    at = body.index(b"{") + 1
    for (
        key,
        value,
    ) in values.items():  # in the order of the text; a key given twice has its last value at its first place
        match = _KEY.match(body, at)
        text = bytes(value)
        if match is None or (match[1] != key.encode() and not _spells(match[1], key)):
            raise _given_twice(body)
        start = match.end()
        if not body.startswith(text, start):
            raise _given_twice(body)
        spans[key] = (start, at := start + len(text))
        if key == last:
            return values, spans
    if _END.match(body, at) is None:
        raise _given_twice(body)
    return values, spans


def _given_twice(body: bytes) -> InvalidRequest:
    """Names the key. The stdlib's reader is slow, but shows every pair; of the objects inside it keeps nothing."""
    try:
        keys = json.loads(body, object_pairs_hook=lambda pairs: [key for key, _ in pairs])
    except (ValueError, RecursionError):  # what msgspec takes and it does not
        keys = []
    twice = [key for key, times in Counter(keys).items() if times > 1]
    return InvalidRequest("a key is given twice", param=twice[0][:64] if twice else None)


def _spells(text: bytes, key: str) -> bool:
    """Whether `text` is `key` in a JSON string, with escapes."""
    return b"\\" in text and key == decode(b'"%b"' % text, type=str)


_TYPES: Final = {b'"': str, b"{": dict, b"[": list, b"t": bool, b"f": bool, b"n": type(None)}
"""By a JSON value's first byte; any other begins a number."""
_TYPE_NAMES: Final[dict[type, str]] = {
    str: "a string",
    bool: "true or false",
    dict: "an object",
    list: "an array",
    int: "a number",
    type(None): "null",
}


def _typed(values: dict[str, msgspec.Raw], key: str, kinds: type | tuple[type, ...], *, deep: bool = True) -> Any:
    """The value of `key`, or None where it is missing or null; InvalidRequest where its type is another.

    Not `deep`: only the type is looked at, by the first byte, since the value may be megabytes.
    """
    raw = values.get(key)
    if raw is None:
        return None
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    first = bytes(memoryview(raw)[:1])
    if first == b"n" and deep:
        return None
    kind = _TYPES.get(first, int)
    if kind not in kinds:
        wanted = " or ".join(_TYPE_NAMES[k] for k in kinds)
        raise InvalidRequest(f"'{key}' must be {wanted}", param=key)
    if not deep:
        return None
    try:
        return decode(raw)
    except DecodeErrors:
        raise InvalidRequest(f"'{key}' is not valid JSON", param=key) from None


def vector_length(body: bytes) -> int | None:
    """Numbers in the first vector of an embeddings answer, floats or base64; None where there is none."""
    match = _VECTOR.search(body)
    if match is None:
        return None
    if match[1] is not None:
        return match[1].count(b",") + 1 if match[1].strip() else 0
    return len(match[2].rstrip(b"=")) * 3 // 4 // 4


def error_body(error: ProxyError, **extra: Any) -> dict[str, Any]:
    """OpenAI's error envelope with ours beside it: source, provider, target, and what `extra` holds."""
    inner: dict[str, Any] = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
        "source": error.source,
    }
    if isinstance(error, ProviderError) and error.target:
        inner |= {"provider": error.target.partition("/")[0], "target": error.target}
    return {"error": inner | extra}


def model_object(id_: str, created: int, owned_by: str) -> dict[str, Any]:
    """One row of ``GET /v1/models``."""
    return {"id": id_, "object": "model", "created": created, "owned_by": owned_by}
