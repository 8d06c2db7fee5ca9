"""A JSON schema of both files for editors, generated from the classes and readers that parse them.

It accepts everything that `load` accepts, and rejects what can be checked locally: unknown keys, wrong types, words,
ranges and patterns. One document serves both files, because ``proxy.yaml`` may contain everything that ``aliases.yaml``
may. Draft 7 has the best support among YAML language servers.
"""

from __future__ import annotations

from collections import abc
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from manallm_proxy.config import amounts, values
from manallm_proxy.config.aliases import SEGMENT
from manallm_proxy.config.described import EACH, FILES, Description, Place, described
from manallm_proxy.config.file_model import AliasGiven, EntryGiven, ProviderGiven, ProxyFile, TierGiven
from manallm_proxy.config.providers import NAME, NOT_FOR_LOOPBACK
from manallm_proxy.config.state_url import state_url
from manallm_proxy.config.values import FALLBACK_CLASSES, LABEL, LARGEST, LONGEST, Duration, Integer, Matching
from manallm_proxy.contract.records import frozen

Schema = dict[str, Any]

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
_VARIABLE: Final = r"\$\{"
"""A string with a variable passes: its value is unknown here."""
_VISIBLE: Final = r"[\x21-\x7e]"
_ENTRIES: Final[dict[Place, type[Any]]] = {
    ("providers", EACH): ProviderGiven,
    ("aliases", EACH): AliasGiven,
    ("aliases", EACH, "chain", EACH): EntryGiven,
}
"""Entries that are parsed one by one, so `file_model` types them as Any."""
_NAMES: Final[dict[Place, str]] = {
    ("providers",): NAME.pattern,
    ("aliases",): rf"[\x21-\x2e\x30-\x7e]+/{SEGMENT.pattern}",
}
_LENGTHS: Final = r"[0-9]+(\.[0-9]+)? ?(ms|s|m|h)"
_SIZES: Final = "[0-9]+ ?([KMG]i?B|B)"


def schema() -> Schema:
    """The whole document."""
    words = {each.place: each for name in FILES for each in described(name).keys}
    made = _Maker(words).made(ProxyFile, ())
    # aliases are either in this file or in the one that it names
    both = {"required": ["aliases", "aliases_file"], "properties": {"aliases": {"type": "object"}}}
    return {"$schema": DRAFT, "title": "manallm-proxy: proxy.yaml and aliases.yaml", **made, "not": both}


@frozen
class _Maker:
    """``words``: the description of each key, by its path."""

    words: abc.Mapping[Place, Description]

    def made(self, cls: type[Any], place: Place) -> Schema:
        """The schema of a class. Null is allowed: a section whose keys are all commented out."""
        hints = get_type_hints(cls, include_extras=True)
        keys = {each.name: self._key(each, hints[each.name], (*place, each.name)) for each in attrs.fields(cls)}
        wanted = [each.name for each in attrs.fields(cls) if each.default is attrs.NOTHING]
        made: Schema = {"type": "object", "properties": keys, "additionalProperties": False}
        if wanted:
            return made | {"required": wanted} | (_of_kinds() if cls is ProviderGiven else {})
        return made | {"type": ["object", "null"]} if place else made

    def _key(self, key: attrs.Attribute[Any], kind: Any, place: Place) -> Schema:
        made = dict(self._value(kind, place))
        said = self.words.get(place) or self.words.get(place[-2:])
        if said is not None and said.text:
            made["description"] = said.text.removesuffix(":")
        if isinstance(key.default, bool | int | float | str):
            is_whole = isinstance(key.default, float) and key.default.is_integer()
            made["default"] = int(key.default) if is_whole else key.default
        return made

    def _value(self, kind: Any, place: Place) -> Schema:
        if place[-2:] == ("any", EACH):
            return _either(_of_reader(values.target), {"type": "object"})  # an entry as above
        if place in _ENTRIES and kind is Any:
            entry = self.made(_ENTRIES[place], place)
            if place[-2:] == ("chain", EACH):
                entry = _one_of_two(entry, self.made(TierGiven, place))
            return _either(_of_reader(values.target), entry) if _ENTRIES[place] is EntryGiven else entry
        if attrs.has(kind):
            return self.made(kind, place)
        match get_origin(kind), get_args(kind):
            case abc.Mapping, (_, inner):
                names = {"propertyNames": {"pattern": _whole(_NAMES[place])}} if place in _NAMES else {}
                each = self._value(inner, (*place, EACH))
                return {"type": ["object", "null"], "additionalProperties": each} | names
            case found, (inner, *_) if found is tuple:
                least = {"minItems": 1} if place[-1] == "chain" else {}
                return {"type": "array", "items": self._value(inner, (*place, EACH))} | least
            case found, words if found is Literal:
                return _either({"enum": list(words)}, _VARIABLE_ALONE)
            case found, (_, reader) if found is Annotated:
                return _of_reader(reader)
            case found, inner if found in (Union, UnionType):
                return _either(
                    *(self._value(each, place) for each in inner if each is not type(None)), {"type": "null"}
                )
            case _ if kind is bool:
                return _either({"type": "boolean"}, _VARIABLE_ALONE)
        assert kind is str, kind
        return {"type": "string"}


def _one_of_two(one: Schema, other: Schema) -> Schema:
    """An object of either class, distinguished by the required keys."""
    wanted = {"anyOf": [{"required": one["required"]}, {"required": other["required"]}]}
    properties = {**other["properties"], **one["properties"]}
    return {"type": "object", "properties": properties, "additionalProperties": False, "allOf": [wanted]}


def _of_reader(reader: Any) -> Schema:
    """The schema of a single value."""
    match reader:
        case Integer(least=least, most=most):
            return _either(
                {"type": "integer", "minimum": least, **({} if most is None else {"maximum": most})}, _VARIABLE_ALONE
            )
        case Duration(zero=zero):
            bounds = {"maximum": LONGEST, "minimum" if zero else "exclusiveMinimum": 0}
            return _either({"type": "number", **bounds}, _text(_LENGTHS, "a number of seconds or 500ms, 30s, 5m, 1h"))
        case Matching(pattern=pattern, what=what):
            return _text(pattern, what)
    return _READERS.get(reader, {})  # a reader that is not known here accepts anything; a test reports it


def _of_kinds() -> Schema:
    """Keys that a provider's kind requires or forbids."""
    never = {key: {"type": "null"} for key in NOT_FOR_LOOPBACK}
    return {
        "allOf": [
            _where("openai", {"required": ["base_url"]}),
            _where("loopback", {"properties": never}),
            {
                "not": {
                    "required": ["api_key", "api_key_file"],
                    "properties": {"api_key": {"type": "string"}, "api_key_file": {"type": "string"}},
                }
            },
        ]
    }


def _where(kind: str, then: Schema) -> Schema:
    return {"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": then}


def _whole(pattern: str) -> str:
    return rf"^(?:{pattern})$"


def _text(pattern: str, what: str) -> Schema:
    """``patternErrorMessage``: a keyword of VS Code's language servers, shown instead of the pattern."""
    return {"type": "string", "pattern": rf"{_whole(pattern)}|{_VARIABLE}", "patternErrorMessage": f"expected {what}"}


def _either(*parts: Schema) -> Schema:
    """Any of `parts`. Parts of different types are merged, so that errors are located at the innermost wrong value."""
    flat = [each for part in parts for each in part.get("anyOf", [part])]
    typed = [part for part in flat if "type" in part]
    types = [name for part in typed for name in ([part["type"]] if isinstance(part["type"], str) else part["type"])]
    types = list(dict.fromkeys(types))
    one = {key: value for part in typed for key, value in part.items() if key != "type"}
    others = [part for part in flat if "type" not in part]
    one = {"type": types[0] if len(types) == 1 else types, **one}
    return {"anyOf": [*others, one]} if others else one


_VARIABLE_ALONE: Final[Schema] = {"type": "string", "pattern": _VARIABLE}
_URL: Final = _text(r"[Hh][Tt][Tt][Pp][Ss]?://[^\s/?#]+(/[^\s?#]*)?", "a URL with http:// or https:// and a host")
_READERS: Final[dict[Any, Schema]] = {
    values.size: _either(
        {"type": "integer", "minimum": 1, "maximum": LARGEST}, _text(_SIZES, "a number of bytes or 64KiB, 32MiB")
    ),
    values.host: _text(
        rf"{LABEL}(?:\.{LABEL})*\.?|(?!.*::.*::)[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?",
        "an address or a host's name, such as 127.0.0.1 or ::1",
    ),
    values.base_url: _URL,
    values.collector_url: _URL,
    values.proxy_url: _URL,
    values.api_key: _text(f"{_VISIBLE}+", "a key: visible ASCII without blanks"),
    values.header_name: {"type": "string"},
    values.target: _text(r"[^/]+/(\*|[\x21-\x29\x2b-\x7e]{1,256})", "provider/model, or provider/* for the best one"),
    values.fallback_class: _either(
        {"enum": list(FALLBACK_CLASSES)},
        {"type": "integer", "minimum": 400, "maximum": 499},
        _text("4[0-9][0-9]", "a class or a status from 400 to 499"),
    ),
    values.options: {"type": ["object", "null"]},
    amounts.rate: _either({"type": "number", "minimum": 0, "maximum": amounts.DEAREST}, _VARIABLE_ALONE),
    amounts.amount: _text(amounts.AMOUNT.pattern, "an amount with its unit, such as 5 USD or 100000 tokens"),
    state_url: _text(
        r"(rediss?|unix|(redis|rediss)\+(cluster|sentinel))://\S+", "redis://host:6379/0, rediss://, unix:///path"
    ),
}
"""Readers without parameters."""
