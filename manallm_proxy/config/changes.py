"""Describes the changes of a reload for the log: ``1 alias changed, 1 provider added``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from manallm_proxy.config.model import Config

NOTHING: Final = "nothing changed"
_APART: Final = frozenset(
    {"providers", "aliases", "auth", "path", "found", "notes", "timeouts", "windows", "prices", "uses_price_list"}
)
"""Fields that are reported separately, or that show in others."""


def changes(before: Config, after: Config) -> str:
    """The differences, in words. No value is shown, since it may be a key."""
    keys = [{key.name: key for key in config.auth.keys} for config in (before, after)]
    parts = [
        *_of("alias", "aliases", before.aliases, after.aliases),
        *_of("provider", "providers", before.providers, after.providers),
        *_of("client key", "client keys", *keys),
    ]
    settings = [f.name for f in attrs.fields(Config) if f.name not in _APART]
    settings = [name for name in settings if getattr(before, name) != getattr(after, name)]
    if before.auth.open != after.auth.open:
        settings.append("auth.open")
    if settings:
        parts.append(f"{', '.join(settings)} changed")
    return ", ".join(parts) or NOTHING


def _of(one: str, many: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    numbers = {
        "changed": sum(1 for name in before.keys() & after.keys() if before[name] != after[name]),
        "added": len(after.keys() - before.keys()),
        "removed": len(before.keys() - after.keys()),
    }
    for what, number in numbers.items():
        if number:
            yield f"{number} {one if number == 1 else many} {what}"
