"""The models that Google lists, through its own library, google-genai: it knows how the list is paged.

For ``check --live`` only: importing the library takes 0.3 s and 24 MB.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from google import genai
from google.genai import errors as genai_errors
from google.genai import types

from manallm_proxy.contract.provider import ModelInfo, ModelList
from manallm_proxy.contract.provider_errors import ConnectTimeout
from manallm_proxy.contract.targets import is_model_name
from manallm_proxy.http_client.aiohttp_session import new_session
from manallm_proxy.http_client.api import Address
from manallm_proxy.http_client.errors import transport_error
from manallm_proxy.openai.json_object import encode
from manallm_proxy.providers.gemini import errors
from manallm_proxy.providers.model_list import MODELS_LIMIT, TOO_MANY
from manallm_proxy.providers.scrub import redact_secrets

_NOT_THE_SHAPE: Final = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What the library raises for a reply that is not Gemini's."""
_PAGE: Final = 1000
"""Google's max page size (ai.google.dev/api/models)."""


async def live_models(address: Address, seconds: float) -> ModelList:
    """All models, within `seconds`. Raises ProviderError if Google refuses, or cannot be reached."""
    models: dict[str, ModelInfo] = {}
    try:
        async with asyncio.timeout(seconds), _client(address) as client:
            async for model in await client.aio.models.list(config={"page_size": _PAGE}):
                if len(models) >= MODELS_LIMIT:
                    return ModelList(tuple(models.values()), TOO_MANY)
                if model.name and is_model_name(model.name):
                    models[model.name] = _info(model)
    except TimeoutError:
        raise ConnectTimeout(f"{address.name}: its models were not listed in {seconds:g} s") from None
    except genai_errors.APIError as error:
        body = encode(error.details) if isinstance(error.details, dict | list) else b""
        raise redact_secrets(errors.failure(error.code, {}, body), *address.secrets) from None
    except Exception as error:
        if (transport := transport_error(error, address.name)) is not None:
            raise transport from None
        if not isinstance(error, _NOT_THE_SHAPE):
            raise
        return ModelList(fault="it is no list of models")
    return ModelList(tuple(models.values()))


@asynccontextmanager
async def _client(address: Address) -> AsyncIterator[genai.Client]:
    """A client over a session of ours, so that TLS and proxy are as configured, and redirects do not get the key."""
    base_url, _, version = address.base_url.rpartition("/")
    request: dict[str, Any] = {"allow_redirects": False, "proxy": address.proxy, "ssl": True}  # the session's own
    async with new_session(address.verify_tls, pooled=False) as session:
        client = genai.Client(
            api_key=address.api_key,
            vertexai=False,  # None would leave it to the environment
            http_options=types.HttpOptions(
                base_url=base_url,
                api_version=version,
                headers=dict(address.headers),
                retry_options=types.HttpRetryOptions(attempts=1),
                aiohttp_client=session,
                async_client_args=request,
            ),
        )
        try:
            yield client
        finally:
            await client.aio.aclose()
            client.close()


def _info(model: types.Model) -> ModelInfo:
    """``models/gemini-2.5-flash`` under both names that a chain may give it."""
    name = model.name or ""
    embeds = "embedContent" in (actions := model.supported_actions or ()) and "generateContent" not in actions
    return ModelInfo(name.removeprefix("models/"), 0, frozenset({"embedding"}) if embeds else None, (name,))
