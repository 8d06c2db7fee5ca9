"""Typed access to a client's request, for translation. Errors are InvalidRequest with the exact path in ``param``.

A path has OpenAI's notation: ``messages[2].tool_calls[0].function.arguments``.
"""

from __future__ import annotations

from typing import Any, Final

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.openai.joined import tail_of
from manallm_proxy.openai.json_object import DecodeErrors, decode_leniently

Fields = dict[str, Any]
"""A decoded JSON object."""
NO_OBJECT: Final = "sent as {}: tool arguments in the history that are no JSON object"
"""Remark on a request, for dialects in which a tool call's arguments must be an object."""
MOST_TEXTS: Final = 20_000
"""Max texts of a list that is translated: inputs of embeddings, which may each become several objects, or stops."""

_NAMES: Final[dict[type, str]] = {
    str: "a string",
    bool: "true or false",
    dict: "an object",
    list: "an array",
    int: "a whole number",
    float: "a number",
}


def decoded(body: bytes) -> Fields:
    """The decoded body. Raises InvalidRequest if it is not a JSON object, or nested too deeply."""
    try:
        asked = decode_leniently(body)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except DecodeErrors:
        raise InvalidRequest("the body is not valid JSON") from None
    if not isinstance(asked, dict):
        raise InvalidRequest("the body must be a JSON object")
    return asked


def wrong(path: str, wanted: str) -> InvalidRequest:
    """The error for an invalid value; `wanted` completes "must be"."""
    return InvalidRequest(f"'{path}' must be {wanted}", param=path)


def typed(kind: type, value: object, path: str) -> Any:
    """`value` if it is of `kind`; raises InvalidRequest if not. A bool is not a number; 3.0 is an int."""
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise wrong(path, _NAMES[kind])
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise wrong(path, "a number of at most 64 bits")
    return value


def optional(of: Fields, key: str, kind: type, path: str = "") -> Any:
    """The member `key`, of `kind`; None if it is missing or null. `path` is that of `of`, with a trailing dot.

    Raises InvalidRequest if it has another type.
    """
    value = of.get(key)
    if value is None or (type(value) is kind and kind is not int):  # the common case; an int has bounds
        return value
    return typed(kind, value, path + key)


def required(of: Fields, key: str, kind: type, path: str) -> Any:
    """As `optional`, but raises InvalidRequest if the member is missing or null."""
    value = of.get(key)
    if type(value) is kind and kind is not int:
        return value
    if value is None:
        raise InvalidRequest(f"'{path}{key}' is missing", param=path + key)
    return typed(kind, value, path + key)


def all_of(kind: type, values: list[Any], path: str) -> list[Any]:
    """`values`, if each is of `kind`; raises InvalidRequest if not."""
    if kind is not int and {*map(type, values)} <= {kind}:  # the common case
        return values
    return [typed(kind, value, f"{path}[{n}]") for n, value in enumerate(values)]


def texts_of(values: list[Any], path: str) -> list[str]:
    """`values`, if they are texts; raises InvalidRequest if not, or for more than MOST_TEXTS."""
    if len(values) > MOST_TEXTS:
        raise InvalidRequest(f"'{path}' has {len(values)} texts; one request may have {MOST_TEXTS}", param=path)
    return all_of(str, values, path)


def wanted_schema(asked: Fields) -> Fields | None:
    """``response_format`` as a JSON schema: empty for any JSON, None for any text."""
    wanted = optional(asked, "response_format", dict)
    if wanted is None:
        return None
    match required(wanted, "type", str, "response_format."):
        case "text":
            return None
        case "json_object":
            return {}
        case "json_schema":
            named = required(wanted, "json_schema", dict, "response_format.")
            schema: Fields = optional(named, "schema", dict, "response_format.json_schema.") or {}
            return schema
    raise wrong("response_format.type", "'text', 'json_object' or 'json_schema'")


def wanted_vectors(asked: Fields, reader: str) -> tuple[str | list[str], int | None]:
    """The texts to embed, and the requested length of the vectors, if any. `reader`: as in `data_uri`.

    Raises InvalidRequest for token ids, which only the model's own tokenizer could read, and for invalid input.
    """
    if optional(asked, "encoding_format", str) not in (None, "float", "base64"):
        raise wrong("encoding_format", "'float' or 'base64'")
    dimensions = optional(asked, "dimensions", int)
    if dimensions is not None and dimensions < 1:
        raise wrong("dimensions", "at least 1")
    given = asked.get("input")
    if given is None:
        raise InvalidRequest("'input' is missing", param="input")
    if given in ("", []):
        raise InvalidRequest("'input' is empty", param="input")
    if not isinstance(given, list):
        return typed(str, given, "input"), dimensions
    if _is_token_ids(given):
        raise InvalidRequest(
            f"'input' holds token ids, and {reader} embeds text only: "
            "send strings (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
            param="input",
        )
    return texts_of(given, "input"), dimensions


def _is_token_ids(given: list[Any]) -> bool:
    flat = [token for item in given for token in (item if isinstance(item, list) else [item])]
    return bool(flat) and all(isinstance(token, int) and not isinstance(token, bool) for token in flat)


def image_url(part: Fields, path: str) -> tuple[str, str]:
    """The URL of an image part, and its path. Some clients send a bare string instead of an object."""
    holder = part.get("image_url")
    if isinstance(holder, str):
        return holder, path + "image_url"
    inner = path + "image_url."
    return required(required(part, "image_url", dict, path), "url", str, inner), inner + "url"


def data_uri(url: str, path: str, reader: str) -> tuple[str, str]:
    """Media type (may be empty) and base64 text of a data URI. `reader`: the provider API, for the message.

    Raises Unsupported for an HTTP URL, since none is fetched for clients, and InvalidRequest for any other text.
    """
    place = url.find(",")
    head, data = (url[:place], tail_of(url, place + 1)) if place >= 0 else (url, "")
    scheme, _, rest = head.partition(":")
    if scheme.lower() in ("http", "https"):
        raise Unsupported(f"URLs are not fetched for {reader}: send '{path}' as a base64 data URI", param="messages")
    media, *settings = rest.lower().split(";")
    if not (scheme.lower() == "data" and data and "base64" in settings):
        raise wrong(path, "a base64 data URI")
    return media, data
