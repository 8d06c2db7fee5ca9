"""Reading what a client sent, for what translates it: InvalidRequest with the exact path in ``param``.

A path is OpenAI's way to say where: ``messages[2].tool_calls[0].function.arguments``.
"""

from __future__ import annotations

import binascii
from typing import Any, Final

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.openai.json_object import DecodeErrors, decode_leniently

Fields = dict[str, Any]
"""A decoded JSON object."""

_NAMES: Final[dict[type, str]] = {
    str: "a string",
    bool: "true or false",
    dict: "an object",
    list: "an array",
    int: "a whole number",
    float: "a number",
}


def decoded(body: bytes) -> Fields:
    """The whole body as objects."""
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
    """The error for a value of the wrong kind; `wanted` completes "must be"."""
    return InvalidRequest(f"'{path}' must be {wanted}", param=path)


def typed(kind: type, value: object, path: str) -> Any:
    """`value` if it is of `kind`, InvalidRequest otherwise. A truth value is no number, 3.0 is a whole one."""
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise wrong(path, _NAMES[kind])
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise wrong(path, "a number of at most 64 bits")
    return value


def optional(of: Fields, key: str, kind: type, path: str = "") -> Any:
    """The member `key`, of `kind`; None where it is missing or null. `path` leads to `of`, with its dot."""
    value = of.get(key)
    return None if value is None else typed(kind, value, path + key)


def required(of: Fields, key: str, kind: type, path: str) -> Any:
    """The same for a member that cannot be missing."""
    value = optional(of, key, kind, path)
    if value is None:
        raise InvalidRequest(f"'{path}{key}' is missing", param=path + key)
    return value


def all_of(kind: type, values: list[Any], path: str) -> list[Any]:
    """`values`, each of `kind`."""
    return [typed(kind, value, f"{path}[{n}]") for n, value in enumerate(values)]


def wanted_schema(asked: Fields) -> Fields | None:
    """``response_format`` as a JSON schema: empty where any JSON will do, None where any text will."""
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


def image_url(part: Fields, path: str) -> tuple[str, str]:
    """The URL of an image part and its path. Some clients send it bare instead of in an object."""
    holder = part.get("image_url")
    if isinstance(holder, str):
        return holder, path + "image_url"
    inner = path + "image_url."
    return required(required(part, "image_url", dict, path), "url", str, inner), inner + "url"


def data_uri(url: str, path: str, reader: str) -> tuple[str, str]:
    """Media type (may be empty) and base64 text of a data URI. No URL is fetched on a client's word."""
    head, comma, data = url.partition(",")
    scheme, _, rest = head.partition(":")
    if scheme.lower() in ("http", "https"):
        raise Unsupported(f"URLs are not fetched for {reader}: send '{path}' as a base64 data URI", param="messages")
    media, *settings = rest.lower().split(";")
    if not (scheme.lower() == "data" and comma and data and "base64" in settings):
        raise wrong(path, "a base64 data URI")
    return media, data


def is_base64(text: str) -> bool:
    """Whether `text` holds any bytes in base64: of either alphabet, padded or not, in lines or not."""
    plain = text.replace("-", "+").replace("_", "/").replace("\n", "").replace("\r", "")
    try:
        return bool(binascii.a2b_base64(plain + "=" * (-len(plain) % 4), strict_mode=True))
    except ValueError:
        return False
