"""Asks an Ollama what it has loaded (``/api/ps``), and to load a model, over connections of its own.

A load keeps its connection open for minutes, and Ollama aborts it when that closes: so it must not be a client's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from attrs import field
from msgspec import Struct

from manallm_proxy.contract.provider_errors import BadResponse, Unsupported
from manallm_proxy.contract.records import define
from manallm_proxy.contract.residents import Resident
from manallm_proxy.contract.targets import RUNNER_OPTIONS, Entry, is_model_name
from manallm_proxy.http_client.api import Address
from manallm_proxy.openai.json_object import DecodeErrors, encode
from manallm_proxy.openai.usage import count
from manallm_proxy.providers.host_client import HostClient
from manallm_proxy.providers.ollama.errors import failure

LOAD_LONGEST: Final = 3600.0
"""Seconds after which a load is given up; Ollama itself gives up one that makes no progress for 5 minutes."""
_FOREVER: Final = -1


class _Row(Struct):
    """api/types.go ProcessModelResponse. Other servers have this list too, with other values in it."""

    name: Any = None
    model: Any = None
    size: Any = 0
    size_vram: Any = 0
    context_length: Any = 0
    expires_at: Any = None


class _Rows(Struct):
    models: list[msgspec.Raw] | None


class _Shown(Struct):
    """api/types.go ShowResponse."""

    modelfile: str = ""


_ROWS: Final = msgspec.json.Decoder(_Rows)
_ROW: Final = msgspec.json.Decoder(_Row)
_SHOWN: Final = msgspec.json.Decoder(_Shown)
_FROM: Final = re.compile(r"^FROM\s+\S*sha256[-:]([0-9A-Fa-f]{8,64})\b", re.MULTILINE)
"""The line of a Modelfile that names the weights."""


@define(eq=False)
class OllamaHost:
    """See `residents.ModelHost`."""

    address: Address
    _client: HostClient = field(repr=False)

    @_client.default
    def _new_client(self) -> HostClient:
        return HostClient(self.address, failure)

    async def residents(self, seconds: float) -> tuple[Resident, ...]:
        body = await self._client.ask("GET", "api/ps", None, seconds)
        now = datetime.now(UTC)
        with contextlib.suppress(*DecodeErrors, msgspec.ValidationError):
            rows = _ROWS.decode(body).models or []
            found = tuple(resident for row in rows if (resident := _resident(row, now)) is not None)
            if found or not rows:
                return found
        raise BadResponse(f"{self.address.name}: its /api/ps cannot be read", detail="unreadable")

    async def slots(self, loaded: Iterable[str], seconds: float) -> Mapping[str, int]:
        """Empty: Ollama does not report it."""
        return {}

    async def load(self, entry: Entry, *, pinned: bool) -> None:
        """Loads by ``generate`` without a prompt. An embedding model refuses that, and is loaded by ``embed``."""
        wanted = _wanted(entry, pinned)
        try:
            await self._client.ask("POST", "api/generate", encode({**wanted, "stream": False}), LOAD_LONGEST)
        except Unsupported:
            wanted.pop("shift", None)
            await self._client.ask("POST", "api/embed", encode({**wanted, "input": []}), LOAD_LONGEST)

    async def blob(self, model: str, seconds: float) -> str | None:
        """The digest of the weights behind a name (``FROM`` of its Modelfile); None if they have none."""
        body = await self._client.ask("POST", "api/show", encode({"model": model}), seconds)
        with contextlib.suppress(*DecodeErrors, msgspec.ValidationError):
            found = _FROM.search(_SHOWN.decode(body).modelfile)
            return found[1].lower() if found is not None else None
        return None

    async def close(self) -> None:
        await self._client.close()


def _resident(row: msgspec.Raw, now: datetime) -> Resident | None:
    """One row of the list, with 0 for each number that is none; None if it names no model."""
    try:
        read = _ROW.decode(row)
    except (*DecodeErrors, msgspec.ValidationError):
        return None
    name = next((each for each in (read.name, read.model) if isinstance(each, str) and is_model_name(each)), None)
    if name is None:
        return None
    size, size_vram, window = (count(each) for each in (read.size, read.size_vram, read.context_length))
    return Resident(name, size, size_vram, window, _seconds_to(read.expires_at, now))


def _wanted(entry: Entry, pinned: bool) -> dict[str, Any]:
    """The request body, with the settings that later requests have: with others they would reload the model."""
    given = {name: value for name, value in entry.options.items() if value is not None}
    wanted: dict[str, Any] = {"model": entry.target.model}
    wanted |= {name: given[name] for name in ("shift", "keep_alive") if name in given}
    if pinned:
        wanted.setdefault("keep_alive", _FOREVER)
    if options := {name: given[name] for name in RUNNER_OPTIONS if name in given}:
        wanted["options"] = options
    return wanted


def _seconds_to(expires_at: object, now: datetime) -> float | None:
    """Seconds until `expires_at` (RFC 3339, with Go's nanoseconds); None if it cannot be read, or has no zone."""
    try:
        then = datetime.fromisoformat(str(expires_at))
        return (then - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
