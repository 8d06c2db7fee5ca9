"""Asks ``/api/show`` for the capabilities of models, which Ollama's list does not contain before version 0.13 or so.

Each model is asked for until the server has answered, and again only when it has changed. So a request that a model
cannot serve is refused without a call.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import msgspec
from attrs import evolve, field
from msgspec import Struct

from manallm_proxy.contract.provider import ModelInfo, ModelList
from manallm_proxy.contract.provider_errors import BadResponse, Blame, ModelFailed, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.http_client.api import Address
from manallm_proxy.openai.json_object import DecodeErrors, encode
from manallm_proxy.openai.large import LARGE_PARTS, offload
from manallm_proxy.providers.host_client import HostClient
from manallm_proxy.providers.model_list import words
from manallm_proxy.providers.ollama.errors import failure

AT_ONCE: Final = 4
"""Max concurrent requests."""
REMEMBERED: Final = 1000
"""Max models remembered; the oldest is dropped."""


class _Shown(Struct):
    """api/types.go ShowResponse."""

    capabilities: Any = None
    model_info: Any = None


_SHOWN: Final = msgspec.json.Decoder(_Shown)
_Facts = tuple[frozenset[str] | None, int]
"""Capabilities, and context length in tokens, 0 if unknown."""


@define(eq=False)
class ModelDetails:
    """See `http_provider.Details`."""

    address: Address
    _client: HostClient = field(init=False, repr=False)
    _known: dict[tuple[str, int], _Facts] = field(factory=dict)
    """Facts by id and time of the model's last change."""

    def __attrs_post_init__(self) -> None:
        base_url = self.address.base_url.removesuffix("/v1")  # its OpenAI endpoints lie below that, this does not
        self._client = HostClient(evolve(self.address, base_url=base_url), failure)

    async def added(self, listed: ModelList, seconds: float) -> ModelList:
        """`listed` with the facts known after at most `seconds`; the others come with a later list."""
        large = len(listed.models) > LARGE_PARTS
        if unknown := await offload(large, self._unknown, listed):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ask_all(unknown, seconds)
        return await offload(large, self._with_known, listed)

    def _unknown(self, listed: ModelList) -> list[ModelInfo]:
        return [each for each in listed.models if each.capabilities is None and _key(each) not in self._known]

    def _with_known(self, listed: ModelList) -> ModelList:
        return evolve(listed, models=tuple(map(self._with_facts, listed.models)))

    async def _ask_all(self, models: list[ModelInfo], seconds: float) -> None:
        waiting = list(reversed(models))

        async def some() -> None:
            while waiting:
                await self._ask(waiting.pop(), seconds)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, len(waiting))):
                group.create_task(some())

    async def _ask(self, model: ModelInfo, seconds: float) -> None:
        facts: _Facts = None, 0
        try:
            facts = _read(await self._client.ask("POST", "api/show", encode({"model": model.id}), seconds))
        except ProviderError as error:
            if not _is_about_the_model(error):
                return  # asked again with the next list
        if len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[_key(model)] = facts

    def _with_facts(self, model: ModelInfo) -> ModelInfo:
        capabilities, context_length = self._known.get(_key(model), (None, 0))
        if model.capabilities is not None or capabilities is None:
            return model
        return evolve(model, capabilities=capabilities, context_length=model.context_length or context_length)

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.close()


def _is_about_the_model(error: ProviderError) -> bool:
    """Whether the error is a lasting answer about the model, not a temporary failure of the server."""
    refused = error.provider_status is not None and error.blame in (Blame.NOBODY, Blame.MODEL)
    return refused or isinstance(error, BadResponse | ModelFailed)


def _key(model: ModelInfo) -> tuple[str, int]:
    return model.id, model.created


def _read(body: bytes) -> _Facts:
    try:
        shown = _SHOWN.decode(body)
    except (*DecodeErrors, msgspec.ValidationError):
        return None, 0
    info = shown.model_info if isinstance(shown.model_info, dict) else {}
    length = info.get(f"{info.get('general.architecture')}.context_length")
    return words(shown.capabilities), length if type(length) is int and length > 0 else 0
