"""The status page: static files from the folder ``page``, whose scripts ask for the data with the admin's key.

The files contain nothing of the configuration, so they are served without a key. If no key is required, the page
contains its initial data as text of an attribute, so that it is drawn without another request. Nothing is loaded from
elsewhere, there are no inline scripts, and no page may frame this one (clickjacking).
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import field

from manallm_proxy.contract.errors import UnknownRoute
from manallm_proxy.contract.records import define
from manallm_proxy.gateway.operator_access import OperatorAccess
from manallm_proxy.gateway.render import Renderer
from manallm_proxy.gateway.route_table import RouteTable
from manallm_proxy.http_server import web
from manallm_proxy.openai.json_object import encode

FOLDER: Final = Path(__file__).with_name("page")
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
TYPES: Final[Mapping[str, str]] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PLACE: Final = b'<main id="main"'
"""The attribute for the initial data."""
NAMES: Final = (
    "index.html",
    "page.css",
    "main.js",
    "feed.js",
    "draw.js",
    "requests.js",
    "charts.js",
    "tryout.js",
    "icon.svg",
)


def wants_html(request: web.BaseRequest) -> bool:
    """Whether a browser asks: only browsers accept HTML by name."""
    return "text/html" in request.headers.get("Accept", "").lower()


@define(eq=False)
class StatusPage:
    """``/`` for a browser is answered by the gateway, with `index`."""

    renderer: Renderer
    access: OperatorAccess
    _held: dict[str, bytes] = field(factory=dict, repr=False)

    def add_to(self, table: RouteTable) -> None:
        """The files that the page loads."""
        table.add("GET", "/page/{id}", self._file, forgiving=False)

    async def _file(self, request: web.BaseRequest, name: str) -> web.Response:
        if name not in NAMES or name == "index.html":
            raise UnknownRoute("the status page has no such file")
        return self.answer(request, name)

    def answer(self, request: web.BaseRequest, name: str) -> web.Response:
        """One file. Raises AdminOnly if this client may not see it."""
        response = self.renderer.raw(request, self._content(request, name), TYPES[name.rpartition(".")[2]])
        response.headers.update(HEADERS)
        return response

    async def index(self, request: web.BaseRequest, first: object = None) -> web.StreamResponse:
        """The page, with `first` (initial data, if any) inserted: of a thousand aliases, it takes long to write.

        Raises AdminOnly if this client may not see it.
        """
        body = self._content(request, "index.html")
        if first is None:
            return self.answer(request, "index.html")
        body = await asyncio.to_thread(_with_data, body, first)
        return await self.renderer.long(request, body, TYPES["html"], {**HEADERS, "Cache-Control": "no-store"})

    def _content(self, request: web.BaseRequest, name: str) -> bytes:
        self.access.check_place(request)
        if name not in self._held:
            self._held[name] = (FOLDER / name).read_bytes()
        return self._held[name]


def _with_data(page: bytes, first: object) -> bytes:
    text = html.escape(encode(first).decode())
    return page.replace(_PLACE, b'%b data-first="%b"' % (_PLACE, text.encode()), 1)
