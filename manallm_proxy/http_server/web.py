"""All that other packages use of aiohttp's server: its requests, responses and sites."""

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
