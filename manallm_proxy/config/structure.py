"""Converts plain data to attrs classes, without coercion, and reports every mistake with its path.

cattrs walks the classes. By default it turns ``"3"`` into 3, ``"false"`` into True and ``"ab"`` into ``('a', 'b')``, so
each kind of value has a strict hook here. What a field requires beyond its type is a reader in its annotation:
``Annotated[float, Duration()]``.
"""

from __future__ import annotations

import copy
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import attrs
import cattrs
from attrs import field
from cattrs.gen import make_dict_structure_fn

from manallm_proxy.config.hints import KEYS, slip, suggestion
from manallm_proxy.config.values import InvalidValue, Reader, boolean, choice, shape, text
from manallm_proxy.config.yaml_file import Filled, shown
from manallm_proxy.contract.records import define

T = TypeVar("T")
Part = str | int
Hook = Callable[[Any, Any], Any]

_MISTAKEN: Final = (InvalidValue, cattrs.BaseValidationError)
"""Errors caused by the input. Anything else is a bug of ours, and is not caught."""


_ADVICE: Final = {
    ("ClientKey", "key"): "keys are not written here: run 'manallm-proxy hash-key', and give what it prints as sha256",
    ("ProxyFile", "workers"): "is given on the command line: manallm-proxy serve --workers N",
}
"""By class and unknown key: what to do instead."""


class ConfigError(Exception):
    """A configuration that cannot be served. ``mistakes`` holds all of them, each with its path.

    ``located``: the same with file and line, where they are known.
    """

    def __init__(self, mistakes: Iterable[str], located: Iterable[str] | None = None) -> None:
        self.mistakes = tuple(mistakes)
        self.located = self.mistakes if located is None else tuple(located)
        super().__init__("\n".join(self.mistakes))


@define
class Mistakes:
    """All mistakes so far, by path, in the order found. Only the first one for a path is kept."""

    _by_path: dict[str, str] = field(factory=dict)
    _elsewhere: list[str] = field(factory=list)

    def __bool__(self) -> bool:
        return bool(self._by_path or self._elsewhere)

    def __iter__(self) -> Iterator[str]:
        yield from self._elsewhere
        for path, what in self._by_path.items():
            yield f"{path}: {what}"

    def add(self, path: str, what: str) -> None:
        """Adds `what` at `path`, unless there is a mistake at or below it already."""
        if not self.within(path):
            self._by_path[path] = what

    def note(self, what: str) -> None:
        """Adds a mistake whose text contains its location, such as a line of a file."""
        self._elsewhere.append(what)

    def within(self, path: str) -> bool:
        """Whether there is a mistake at or below `path`."""
        return any(_is_within(each, path) for each in self._by_path)


def _is_within(path: str, outer: str) -> bool:
    return path == outer or path.startswith((f"{outer}.", f"{outer}["))


def structure(cls: type[T], raw: object, path: str, mistakes: Mistakes) -> T | None:
    """`raw` as an instance of `cls`; mistakes are added below `path`.

    If there are any, the wrong parts are removed and the rest is read again, so that later checks have something to
    work on. Returns None if that fails too.
    """
    try:
        return _CONVERTER.structure(raw, cls)
    except _MISTAKEN as error:
        places = list(_located(error))
    for place, what in places:
        mistakes.add(join(path, *place), what)
    rest = copy.deepcopy(raw)
    for place, _ in places:
        _leave_out(rest, place)
    try:
        return _CONVERTER.structure(rest, cls)
    except _MISTAKEN:
        return None


def join(path: str, *parts: Part) -> str:
    """``join("aliases", "mana/x", "chain", 1)`` -> ``"aliases.mana/x.chain[1]"``."""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{shown(part)}" if path else shown(part)
    return path


def _located(error: BaseException, place: tuple[Part, ...] = ()) -> Iterator[tuple[tuple[Part, ...], str]]:
    """Each mistake in an error of cattrs, with the keys and indices that lead to it."""
    match error:
        case cattrs.BaseValidationError():
            for inner in error.exceptions:
                yield from _located(inner, place + _last_step(inner))
        case cattrs.ForbiddenExtraKeysError():
            known = [a.name for a in attrs.fields(error.cl)]
            for key in sorted(error.extra_fields, key=str):
                advice = _ADVICE.get((error.cl.__name__, str(key)))
                yield (*place, str(key)), advice or f"unknown key{suggestion(key, known, KEYS)}"
        case InvalidValue():
            yield place, str(error)
        case KeyError():
            yield place, "is missing"
        case _:
            raise error


def _last_step(error: BaseException) -> tuple[Part, ...]:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, cattrs.AttributeValidationNote):
            return (note.name,)
        if isinstance(note, cattrs.IterableValidationNote):
            return (note.index,)
    return ()


def _leave_out(raw: object, place: Sequence[Part]) -> None:
    """Removes the innermost mapping key on the way to `place` from `raw`."""
    at, owner, key = raw, None, ""
    for part in place:
        if not isinstance(at, dict) or part not in at:
            break
        owner, key = at, str(part)
        at = at[part]
    if owner is not None:
        owner.pop(key, None)


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook(str, _hook(text))
    converter.register_structure_hook(bool, _hook(boolean))
    factory = converter.register_structure_hook_factory
    factory(attrs.has, lambda cls: _class_hook(cls, converter))
    factory(lambda kind: _origin(kind) is tuple, lambda kind: _list_hook(kind, converter))
    factory(lambda kind: _origin(kind) is abc.Mapping, lambda kind: _mapping_hook(kind, converter))
    factory(lambda kind: _origin(kind) is Literal, lambda kind: _hook(choice(*get_args(kind))))
    factory(_is_optional, lambda kind: _optional_hook(kind, converter))
    factory(lambda kind: _origin(kind) is Annotated, lambda kind: _hook(kind.__metadata__[0]))
    return converter


def _origin(kind: Any) -> Any:
    return get_origin(kind)


def _is_optional(kind: Any) -> bool:
    return _origin(kind) in (Union, UnionType) and type(None) in get_args(kind)


def _hook(read: Reader) -> Hook:
    def checked(value: Any, _kind: Any) -> Any:
        try:
            return read(value)
        except InvalidValue as error:
            source = f" (the value of {value.variable})" if isinstance(value, Filled) and value.variable else ""
            raise InvalidValue(f"{error}{slip(value)}{source}") from None

    return checked


def _optional_hook(kind: Any, converter: cattrs.Converter) -> Hook:
    inner = next(t for t in get_args(kind) if t is not type(None))
    hook = converter.get_structure_hook(inner)

    def read(value: object, _kind: Any) -> Any:
        """Null, and a variable with an empty value, count as not given."""
        return None if value is None or (isinstance(value, Filled) and not value) else hook(value, inner)

    return read


def _class_hook(cls: type[Any], converter: cattrs.Converter) -> Hook:
    inner = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True)

    def read(value: object, kind: Any) -> Any:
        """Null is a section whose keys are all commented out: all defaults."""
        if value is not None and not isinstance(value, dict):
            raise shape("keys and values", value)
        return inner(value or {}, kind)

    return read


def _list_hook(kind: Any, converter: cattrs.Converter) -> Hook:
    inner = get_args(kind)[0]
    hook = converter.get_structure_hook(inner)

    def read(value: object, _kind: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise shape("a list", value)
        return tuple(_each([(n, partial(hook, each, inner)) for n, each in enumerate(value)], kind))

    return read


def _mapping_hook(kind: Any, converter: cattrs.Converter) -> Hook:
    keys, values = get_args(kind)
    key_hook = converter.get_structure_hook(keys)
    hook = converter.get_structure_hook(values)

    def read(value: object, _kind: Any) -> dict[str, Any]:
        if value is not None and not isinstance(value, dict):
            raise shape("keys and values", value)

        def pair(key: str, each: object) -> tuple[str, Any]:
            return key_hook(key, keys), hook(each, values)

        return dict(_each([(key, partial(pair, key, each)) for key, each in (value or {}).items()], kind))

    return read


def _each(steps: Iterable[tuple[Part, Callable[[], Any]]], kind: Any) -> list[Any]:
    """The results of all steps. Raises one error with the mistakes of all of them."""
    done: list[Any] = []
    errors: list[Exception] = []
    for place, step in steps:
        try:
            done.append(step())
        except _MISTAKEN as error:
            error.add_note(cattrs.IterableValidationNote("", place, kind))
            errors.append(error)
    if errors:
        raise cattrs.IterableValidationError("", errors, kind)
    return done


_CONVERTER: Final = _converter()
