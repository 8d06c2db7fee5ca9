"""The private or undocumented names of aiohttp's client that we use, checked at import. Written for aiohttp 3.14.

1. ``BaseConnector._get`` hands out a pooled connection even if an unsolicited response waits in it: aiohttp 3.14.5
   checks ``ResponseHandler.should_close`` when a connection returns to the pool (``_release``), not when it leaves,
   and takes those bytes for the response to the next request, which is another client's. `Connector` checks again.
2. ``http_exceptions.HttpProcessingError`` is what the pure Python parser raises; it is not a ``ClientError``.
"""

from __future__ import annotations

import inspect
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError as HttpProcessingError


class Connector(aiohttp.TCPConnector):
    """A pool that hands out no connection over which bytes have arrived since it was last used."""

    async def _get(self, key: Any, traces: Any) -> Any:
        while (connection := await super()._get(key, [])) is not None:
            if connection.protocol is not None and not connection.protocol.should_close:
                for trace in traces:
                    await trace.send_connection_reuseconn()
                return connection
            connection.close()
        return None


def check() -> None:
    """Raises ImportError if aiohttp lacks one of these names, or its parameters differ."""
    for owner, name, parameters in (
        (aiohttp.BaseConnector, "_get", ["self", "key", "traces"]),
        (aiohttp.BaseConnector, "_release", None),
        (ResponseHandler, "should_close", None),
    ):
        found = getattr(owner, name, None)
        if found is None or (parameters and list(inspect.signature(found).parameters) != parameters):
            raise ImportError(
                f"aiohttp {aiohttp.__version__}: {owner.__name__}.{name} is missing or has other parameters. "
                "Install the version in constraints.txt, or adapt http_client/aiohttp_internals.py and run its tests."
            )


check()
