"""Writes the schemas of tools anew, once the provider has refused them: as objects with properties.

The arguments of a call are an object, and MCP servers do not always say so: Go's leave out ``properties`` where there
are none ("object schema missing properties", OpenAI), others have no type, or alternatives in its place ("schema must
be a JSON Schema of 'type: "object"', got 'type: null'", DeepSeek; "anyOf ... at the top level", OpenAI and Anthropic).
One such tool is 400 for the whole request, and for each one with that tool.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.openai.json_object import decode, encode_whole
from manallm_proxy.openai.rows import Row, changed_rows, read_rows
from manallm_proxy.providers.mending.history import note_changes

SCHEMAS, JOINED = "schemas", "joined schemas"
"""What may be refused, and is learned then: schemas that do not say that they are of an object, and alternatives."""
_REFUSED: Final = re.compile(
    rb"\bschema missing properties|\bschema must (?:be a JSON schema of|have) .{0,16}type"
    rb"|\b(?:parameters|input_schema)\W{1,4}(?:type|properties)\b|\bparameter root must be"
    rb"|\b(?:one|any|all)Of\b.{0,60}\btop level\b",
    re.IGNORECASE | re.DOTALL,
)
_JOINED: Final = re.compile(rb"\b(?:one|any|all)Of\b.{0,60}\btop level\b", re.IGNORECASE | re.DOTALL)
_ALTERNATIVES: Final = ("anyOf", "oneOf", "allOf")
_KEYS: Final = {Endpoint.CHAT: "parameters", Endpoint.RESPONSES: "parameters", Endpoint.MESSAGES: "input_schema"}
_FUNCTION: Final = msgspec.Raw(b'"function"')
_CUSTOM: Final = msgspec.Raw(b'"custom"')
_NULL: Final = msgspec.Raw(b"null")


def refuses_schemas(refusal: bytes) -> bool:
    """Whether a `refusal` is of the form that a tool's schema has at its top."""
    return _REFUSED.search(refusal) is not None


def refused_form(refusal: bytes) -> str:
    """What such a `refusal` is about: `SCHEMAS` or `JOINED`."""
    return JOINED if _JOINED.search(refusal) else SCHEMAS


def with_object_schemas(call: Call, *, joins: bool = True) -> Call:
    """`call` with a type and properties in the schemas of all its tools, and no alternatives at their top, unless it
    `joins` only those of which it is not said that they are of an object; itself if all have that form."""
    key = _KEYS.get(call.endpoint)
    if key is None:
        return call
    changed = changed_rows(call, "tools", lambda rows: [_tool(row, call.endpoint, key, joins) for row in rows])
    if changed is not call:
        note_changes(call, "schemas of tools written as objects")
    return changed


def _tool(row: Row, endpoint: Endpoint, key: str, joins: bool) -> Row:
    kind = row.get("type", _NULL)
    if endpoint is Endpoint.CHAT:
        if kind != _FUNCTION or "function" not in row:
            return row
        (function,) = read_rows(b"[%b]" % bytes(row["function"]))
        kept = _with_object(function, key, joins)
        return row if kept is function else {**row, "function": msgspec.Raw(encode_whole(kept))}
    is_clients = kind == _FUNCTION if endpoint is Endpoint.RESPONSES else kind in (_NULL, _CUSTOM)
    return _with_object(row, key, joins) if is_clients else row


def _with_object(holder: Row, key: str, joins: bool) -> Row:
    schema = decode(bytes(holder.get(key, _NULL)))
    if schema is None:
        schema = {}
    if not isinstance(schema, dict):
        return holder
    written = object_schema(schema, joins=joins)
    return holder if written == schema else {**holder, key: msgspec.Raw(encode_whole(written))}


def object_schema(schema: dict[str, Any], *, joins: bool = True) -> dict[str, Any]:
    """`schema` as one of an object. Of alternatives at its top, if it `joins` them or was none, all properties are
    offered, and only what all of them have to have is required."""
    own = {**schema, "type": "object", "properties": schema.get("properties") or {}}
    is_object = schema.get("type") == "object"
    if (is_object and not joins) or schema.keys().isdisjoint(_ALTERNATIVES):
        return own
    own = {name: value for name, value in own.items() if name not in _ALTERNATIVES}
    branches = [each for name in _ALTERNATIVES for each in _objects(schema.get(name))]
    if offered := [each["properties"] for each in branches if isinstance(each.get("properties"), dict)]:
        own["properties"] = dict(pair for one in [*reversed(offered), own["properties"]] for pair in one.items())
    needed = [
        each["required"] for each in (own, *_objects(schema.get("allOf"))) if isinstance(each.get("required"), list)
    ]
    if names := [*dict.fromkeys(name for each in needed for name in each if isinstance(name, str))]:
        own["required"] = names
    return own


def _objects(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
