"""What the rest of the house takes from aiohttp's server: its requests, answers and sites, and nothing beside them."""

from __future__ import annotations

from aiohttp.web import (
    BaseRequest,
    RequestKey,
    RequestPayloadError,
    Response,
    SockSite,
    StreamResponse,
    TCPSite,
    UnixSite,
)
from aiohttp.web_runner import BaseSite

__all__ = [
    "BaseRequest",
    "BaseSite",
    "RequestKey",
    "RequestPayloadError",
    "Response",
    "SockSite",
    "StreamResponse",
    "TCPSite",
    "UnixSite",
]
