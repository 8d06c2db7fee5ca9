"""Asks a llama-server in router mode (with no model of its own) what it has loaded, and to load a model.

Its model list has a ``status.value`` for each model: unloaded, loading, loaded; and ``failed: true`` with unloaded if
the model's process has died (llama.cpp builds 11434, 11669). To make room for another model it unloads even one that is
still loading, so models are loaded one after another here; while all models that it has room for are busy, it answers
500 ("model limit reached"), or not until one is idle (build 11434), and is asked again. A model that *sleeps* (its
weights are not in memory, but its process runs) is woken by asking for its ``/slots``. Other servers' lists lack the
status; they are asked a few times, then hardly ever. ``/props`` has the number of requests that a llama-server answers
at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec
from attrs import evolve, field
from msgspec import Struct

from manallm_proxy.contract.provider_errors import BadResponse, Blame, FirstByteTimeout, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.residents import Resident
from manallm_proxy.contract.targets import Entry
from manallm_proxy.http_client.api import Address
from manallm_proxy.openai.json_object import DecodeErrors, encode
from manallm_proxy.providers.classify import classify, envelope
from manallm_proxy.providers.host_client import HostClient

LOAD_LONGEST: Final = 3600.0
"""Max seconds for a load."""
POLL: Final = 0.5
"""Seconds between two checks of a load."""
ANSWER: Final = 10.0
"""Max seconds for an answer that needs no load."""
BEGINS: Final = 5.0
"""Max seconds until the list shows that a load has begun."""
_ROOT: Final = "/v1"


class _Row(Struct):
    id: str = ""
    aliases: Any = None
    status: Any = None
    meta: Any = None

    @property
    def state(self) -> str | None:
        """Its ``status.value``, or "failed"; None if the server does not report it."""
        status = self.status if isinstance(self.status, dict) else {}
        value = "failed" if status.get("failed") is True else status.get("value")
        return value if isinstance(value, str) else None

    @property
    def names(self) -> tuple[str, ...]:
        """Its id, and its aliases, which requests and loads may name as well."""
        others = self.aliases if isinstance(self.aliases, list) else []
        return (self.id, *(each for each in others if isinstance(each, str)))

    @property
    def window(self) -> int:
        """The context window in force, in tokens; 0 if the server does not report it."""
        tokens = self.meta.get("n_ctx") if isinstance(self.meta, dict) else None
        return tokens if type(tokens) is int and tokens > 0 else 0


class _Rows(Struct):
    data: list[_Row] | None = None


class _Props(Struct):
    total_slots: Any = None


_ROWS: Final = msgspec.json.Decoder(_Rows)
_PROPS: Final = msgspec.json.Decoder(_Props)


@define(eq=False)
class RouterHost:
    """See `residents.ModelHost`. ``address``: of the provider, with or without ``/v1``."""

    address: Address
    _client: HostClient = field(init=False, repr=False)
    _list: str = field(init=False)
    _loading: asyncio.Lock = field(factory=asyncio.Lock)
    _slots: dict[str, int] = field(factory=dict)
    """Slots of the loaded models."""
    _has_slots: bool = False
    """Whether it reported them the last time."""

    def __attrs_post_init__(self) -> None:
        base = self.address.base_url
        self._list = "v1/models" if base.endswith(_ROOT) else "models"
        self._client = HostClient(evolve(self.address, base_url=base.removesuffix(_ROOT)), _failure)

    async def residents(self, seconds: float) -> tuple[Resident, ...] | None:
        rows = await self._rows(seconds)
        if not any(row.state for row in rows):
            return None
        loaded = [row for row in rows if row.state == "loaded"]
        return tuple(Resident(row.id, context_length=row.window, aliases=row.names[1:]) for row in loaded)

    async def slots(self, loaded: Iterable[str], seconds: float) -> Mapping[str, int]:
        """``total_slots`` of ``/props``, per model in router mode, else of the server."""
        models = tuple(loaded)
        if not models:
            self._slots.clear()
            return {"": slots} if (slots := await self._slots_of("props", seconds)) else {}
        self._slots = {model: self._slots[model] for model in models if model in self._slots}
        for model in models:
            if model not in self._slots:
                query = f"props?model={quote(model, safe='')}&autoload=false"
                self._slots[model] = await self._slots_of(query, seconds)
        return {model: slots for model, slots in self._slots.items() if slots}

    async def _slots_of(self, path: str, seconds: float) -> int:
        """``total_slots`` at `path`; 0 if it is missing. Raises ProviderError if the server cannot say now."""
        try:
            slots = _PROPS.decode(await self._client.ask("GET", path, None, seconds)).total_slots
        except ProviderError as error:
            if error.blame is Blame.LOAD or (self._has_slots and error.blame in (Blame.REACH, Blame.TARGET)):
                raise
            return 0
        except (*DecodeErrors, msgspec.ValidationError):
            return 0
        self._has_slots = type(slots) is int and slots > 0
        return slots if self._has_slots else 0

    async def load(self, entry: Entry, *, pinned: bool) -> None:
        """The load goes on even if this is cancelled. `pinned` has no effect: the server unloads what it has not used
        for longest."""
        async with self._loading:
            await self._load(entry.target.model)

    async def _load(self, model: str) -> None:
        for _ in range(round(LOAD_LONGEST / POLL)):
            try:
                await self._client.ask("POST", "models/load", encode({"model": model}), ANSWER)
                break
            except ProviderError as error:  # 400 also for a model that is loaded, or that another client loads
                state = await self._state(model)
                if state == "sleeping":
                    await self._wake(model)
                    return
                if state in ("loading", "loaded"):
                    break
                if not _has_no_room(error):
                    raise
            await asyncio.sleep(POLL)
        begun = False
        for look in range(round(LOAD_LONGEST / POLL)):
            state = await self._state(model)
            if state == "loaded":
                return
            if begun and state == "unloaded":
                return  # it was loaded, and has been unloaded to make room: the request will load it again
            begun = begun or state == "loading"
            if state == "failed" or (begun and state != "loading") or (not begun and look * POLL > BEGINS):
                break
            await asyncio.sleep(POLL)
        raise BadResponse(f"{self.address.name}: it could not load {model}", detail="failed to load")

    async def close(self) -> None:
        await self._client.close()

    async def _wake(self, model: str) -> None:
        """Returns once `model` is awake. If the server has no ``/slots``, the request will wake it."""
        with contextlib.suppress(ProviderError):
            await self._client.ask("GET", f"slots?model={quote(model, safe='')}", None, LOAD_LONGEST)

    async def _state(self, model: str) -> str | None:
        return next((row.state for row in await self._rows(ANSWER) if model in row.names), None)

    async def _rows(self, seconds: float) -> list[_Row]:
        body = await self._client.ask("GET", self._list, None, seconds)
        try:
            return _ROWS.decode(body).data or []
        except (*DecodeErrors, msgspec.ValidationError):
            return []


def _has_no_room(error: ProviderError) -> bool:
    """Whether the server cannot unload another model yet, since it is busy or loading: the server answers that, or
    delays its answer until then."""
    return isinstance(error, FirstByteTimeout) or "limit reached" in (error.raw_message or "")


def _failure(status: int, headers: Any, body: bytes) -> ProviderError:
    return classify(status, headers, envelope(body))
