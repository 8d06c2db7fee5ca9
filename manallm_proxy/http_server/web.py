"""All that we use of aiohttp's server: its requests, responses and how it serves them.

Imported from the modules that define them: ``aiohttp.web`` would add a megabyte of applications, routes, files and
WebSockets, which a proxy does not need.
"""

from __future__ import annotations

from aiohttp.helpers import RequestKey
from aiohttp.web_protocol import RequestPayloadError
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse
from aiohttp.web_server import Server

__all__ = [
    "BaseRequest",
    "RequestKey",
    "RequestPayloadError",
    "Response",
    "Server",
    "StreamResponse",
]
