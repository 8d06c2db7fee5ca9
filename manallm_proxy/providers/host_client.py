"""HTTP requests to a local server about its models, over separate connections: a load occupies one for minutes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from attrs import field

from manallm_proxy.contract.provider_errors import BadResponse, FirstByteTimeout, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.http_client.api import Address, Connections, Response
from manallm_proxy.providers.http_provider import connections_to
from manallm_proxy.providers.scrub import redact_secrets

BODY_LIMIT: Final = 1 << 20
"""Max bytes of an answer."""
CONNECT: Final = 3.0
"""Max seconds for a connection."""


@define(eq=False)
class HostClient:
    """The connections to one server. ``failure`` makes the error for a status other than 200, as `Wire.failure`."""

    address: Address
    failure: Callable[[int, Mapping[str, str], bytes], ProviderError]
    _connections: Connections = field(repr=False)

    @_connections.default
    def _new_connections(self) -> Connections:
        return connections_to(self.address)

    async def ask(self, method: str, path: str, body: bytes | None, seconds: float) -> bytes:
        """The body of a 200, within `seconds`. Raises ProviderError."""
        try:
            async with asyncio.timeout(seconds):
                response = await self._connections.request(method, path, request_id=None, body=body, connect=CONNECT)
                answer = await _body(response)
        except TimeoutError:
            raise FirstByteTimeout(f"{self.address.name}: {path} got no answer in {seconds:g} s") from None
        if response.status != 200:
            # under no name, or its traceback would hold this frame, and this frame it
            raise redact_secrets(self.failure(response.status, response.headers, answer), *self.address.secrets)
        return answer

    async def close(self) -> None:
        """Closes all of them."""
        await self._connections.close()


async def _body(response: Response) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        while part := await response.read():
            parts.append(part)
            size += len(part)
            if size > BODY_LIMIT:
                raise BadResponse("its answer does not end", detail="too long")
    except BaseException:
        response.close()
        raise
    response.release()
    return b"".join(parts)
