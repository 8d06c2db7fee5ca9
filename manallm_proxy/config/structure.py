"""From plain data to attrs classes: nothing is coerced, and every mistake is told with its path.

cattrs walks the classes; by itself it turns ``"3"`` into 3, ``"false"`` into True and ``"ab"`` into
``('a', 'b')``, so each kind of value has a hook here that takes what it is and nothing else. What a field
wants beyond its type is said by a reader in its annotation: ``Annotated[float, duration()]``.
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
from attrs import define, field
from cattrs.gen import make_dict_structure_fn

from manallm_proxy.config.values import Reader, Wrong, choice, expected, suggestion, text, truth
from manallm_proxy.config.yaml_file import Filled, shown

T = TypeVar("T")
Part = str | int
Hook = Callable[[Any, Any], Any]

_MISTAKEN: Final = (Wrong, cattrs.BaseValidationError)
"""What the input is to blame for; anything else is a bug of ours and passes."""


class ConfigError(Exception):
    """A configuration that cannot be served. ``mistakes`` are all of them, each with its path."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


@define
class Mistakes:
    """All that is wrong so far, by path, in the order found. Of one place only the first is told."""

    _told: dict[str, str] = field(factory=dict)
    _elsewhere: list[str] = field(factory=list)

    def __bool__(self) -> bool:
        return bool(self._told or self._elsewhere)

    def __iter__(self) -> Iterator[str]:
        yield from self._elsewhere
        for path, what in self._told.items():
            yield f"{path}: {what}"

    def add(self, path: str, what: str) -> None:
        """`what` is wrong at `path`, unless a mistake there or below it has said more."""
        if not self.within(path):
            self._told[path] = what

    def note(self, what: str) -> None:
        """A mistake that has its place in its text, such as a file's line."""
        self._elsewhere.append(what)

    def within(self, path: str) -> bool:
        """Whether anything at or below `path` is wrong."""
        return any(_is_within(told, path) for told in self._told)


def _is_within(path: str, outer: str) -> bool:
    return path == outer or path.startswith((f"{outer}.", f"{outer}["))


def structure(cls: type[T], raw: object, path: str, mistakes: Mistakes) -> T | None:
    """`raw` as a `cls`, its mistakes added below `path`.

    What is wrong is left out and the rest read once more, so that later checks find what they look for;
    None where even then it cannot be one.
    """
    try:
        return _CONVERTER.structure(raw, cls)
    except _MISTAKEN as error:
        places = list(_told(error))
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


def _told(error: BaseException, place: tuple[Part, ...] = ()) -> Iterator[tuple[tuple[Part, ...], str]]:
    """Each mistake in what cattrs raised, with the keys and indices that lead to it."""
    match error:
        case cattrs.BaseValidationError():
            for inner in error.exceptions:
                yield from _told(inner, place + _last_step(inner))
        case cattrs.ForbiddenExtraKeysError():
            known = [a.name for a in attrs.fields(error.cl)]
            for key in sorted(error.extra_fields, key=str):
                yield (*place, str(key)), f"unknown key{suggestion(key, known)}"
        case Wrong():
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
    """Takes the innermost key on the way to `place` out of `raw`."""
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
    converter.register_structure_hook(bool, _hook(truth))
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
    return lambda value, _kind: read(value)


def _optional_hook(kind: Any, converter: cattrs.Converter) -> Hook:
    inner = next(t for t in get_args(kind) if t is not type(None))
    hook = converter.get_structure_hook(inner)

    def read(value: object, _kind: Any) -> Any:
        """Nothing, or a variable that is filled with nothing, leaves it out."""
        return None if value is None or (isinstance(value, Filled) and not value) else hook(value, inner)

    return read


def _class_hook(cls: type[Any], converter: cattrs.Converter) -> Hook:
    inner = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True)

    def read(value: object, kind: Any) -> Any:
        """A section whose keys are all commented out is YAML's null: all defaults."""
        if value is not None and not isinstance(value, dict):
            raise expected("keys and values", value)
        return inner(value or {}, kind)

    return read


def _list_hook(kind: Any, converter: cattrs.Converter) -> Hook:
    inner = get_args(kind)[0]
    hook = converter.get_structure_hook(inner)

    def read(value: object, _kind: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise expected("a list", value)
        return tuple(_each([(n, partial(hook, each, inner)) for n, each in enumerate(value)], kind))

    return read


def _mapping_hook(kind: Any, converter: cattrs.Converter) -> Hook:
    keys, values = get_args(kind)
    key_hook = converter.get_structure_hook(keys)
    hook = converter.get_structure_hook(values)

    def read(value: object, _kind: Any) -> dict[str, Any]:
        if value is not None and not isinstance(value, dict):
            raise expected("keys and values", value)

        def pair(key: str, each: object) -> tuple[str, Any]:
            return key_hook(key, keys), hook(each, values)

        return dict(_each([(key, partial(pair, key, each)) for key, each in (value or {}).items()], kind))

    return read


def _each(steps: Iterable[tuple[Part, Callable[[], Any]]], kind: Any) -> list[Any]:
    """The result of each step; the mistakes of all of them at once."""
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
