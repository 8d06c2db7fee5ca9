"""`define` and `frozen`: attrs' decorators, for classes that take a third of the memory.

attrs writes, compiles and keeps functions for each class: its ``repr``, equality, hash and pickling, their source text,
a class for the tuple of its fields. That is 17 KB a class and 0.4 ms of the start, and there are hundreds of classes.
Here they share these functions, which do the same; ``__init__`` and the fields are attrs'.
"""

from __future__ import annotations

import linecache
import reprlib
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from attrs import define, frozen

__all__ = ["define", "frozen"]


def _maker(make: Any) -> Any:
    """`make` with the same options, except for ``match_args`` and pickling."""

    def decorate(cls: type | None = None, /, **options: Any) -> Any:
        if cls is None:
            return lambda cls: decorate(cls, **options)
        compares, shows = options.pop("eq", True), options.pop("repr", True)
        own = set(cls.__dict__)
        made = make(cls, eq=False, repr=False, getstate_setstate=False, match_args=False, **options)
        linecache.cache.pop(f"<attrs generated methods {made.__module__}.{made.__qualname__}>", None)
        # a plain tuple, as it is documented: attrs makes a class of its own for each, with a property for each field
        made.__attrs_attrs__ = tuple(made.__attrs_attrs__)
        if shows and "__repr__" not in own:
            made.__repr__ = _repr
        if compares and "__eq__" not in own and not issubclass(made, BaseException):
            made.__eq__ = _equal(made)
            if "__hash__" not in own:
                made.__hash__ = _hash(made) if attrs.inspect(made).is_frozen else None
        if options.get("slots", True) and "__getstate__" not in own:
            made.__getstate__, made.__setstate__ = _getstate, _setstate
        return made

    return decorate


@reprlib.recursive_repr()
def _repr(self: Any) -> str:
    """attrs' format: all fields by name, except those with ``repr=False``."""
    shown = []
    for each in type(self).__attrs_attrs__:
        if each.repr:
            write = each.repr if callable(each.repr) else repr
            shown.append(f"{each.name}={write(getattr(self, each.name, attrs.NOTHING))}")
    return f"{type(self).__qualname__.rpartition('>.')[2]}({', '.join(shown)})"


def _values(cls: Any) -> Callable[[Any], Any]:
    """A getter, written in C, for all fields that take part in equality."""
    names = [each.name for each in cls.__attrs_attrs__ if each.eq]
    return attrgetter(*names) if names else lambda _: ()


def _equal(cls: Any) -> Callable[[Any, Any], Any]:
    values = _values(cls)

    def equal(self: Any, other: Any) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    return equal


def _hash(cls: Any) -> Callable[[Any], int]:
    values = _values(cls)
    return lambda self: hash(values(self))


def _getstate(self: Any) -> dict[str, Any]:
    return {each.name: getattr(self, each.name) for each in type(self).__attrs_attrs__}


def _setstate(self: Any, state: dict[str, Any]) -> None:
    for name, value in state.items():
        object.__setattr__(self, name, value)


if not TYPE_CHECKING:
    define, frozen = _maker(attrs.define), _maker(attrs.frozen)
