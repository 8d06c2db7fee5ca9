"""Discovers model servers: which addresses to ask, and what an answer means. Pure; `server_scan` asks.

Outside of this machine, only the addresses in ``OLLAMA_URL`` and ``OLLAMA_HOST`` are asked. Servers are identified by
their answers, not by their ports.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import field

from manallm_proxy.config.found_servers import address_of
from manallm_proxy.config.loopback import ALL_HERE
from manallm_proxy.config.model import DiscoveredServer, Kind
from manallm_proxy.contract.provider import ModelInfo
from manallm_proxy.contract.records import frozen
from manallm_proxy.contract.targets import is_model_name
from manallm_proxy.openai.json_object import DecodeErrors, decode
from manallm_proxy.providers.ollama.wire import OllamaWire
from manallm_proxy.providers.openai.wire import OpenAIWire
from manallm_proxy.routing.catalog import short_name

OLLAMA_PORT: Final = 11434
TITLES: Final = {
    "ollama": "Ollama",
    "lmstudio": "LM Studio",
    "llamacpp": "llama.cpp",
    "vllm": "vLLM",
    "server": "an OpenAI-compatible server",
}
"""By the provider's name. The last one is that of a server which does not say what it is."""
USUAL: Final = ((OLLAMA_PORT, "ollama"), (1234, "lmstudio"), (8080, "llamacpp"), (9931, "llamacpp"), (8000, "vllm"))
TAGS, MODELS = "api/tags", "v1/models"
NO_HTTP: Final = 0
"""The status of an answer that is no HTTP."""
_OWNERS: Final = {"llamacpp": "llamacpp", "vllm": "vllm", "organization_owner": "lmstudio", "manallm": "manallm"}
LINE: Final = 73
"""Columns for a server: 80 with what stands before it."""


@frozen
class Candidate:
    """An address to ask. ``usual``: the server that usually has this port; ``named_by``: the variable that names it."""

    root: str
    usual: str
    named_by: str | None = None


@frozen
class Reply:
    """The answer of an address to one GET. ``body`` None: too long, or incomplete."""

    status: int
    server: str = ""
    body: bytes | None = field(default=None, repr=False)


@frozen
class Server:
    """A model server, and its models."""

    found: DiscoveredServer
    models: tuple[ModelInfo, ...] = ()

    def line(self) -> str:
        """``Ollama at http://127.0.0.1:11434: smol, nomic-embed-text``, within 80 columns where the address allows."""
        line = f"{TITLES.get(self.found.name, self.found.name)} at {self.found.base_url}: "
        if not self.models:
            return f"{line}no models yet"
        names = [short_name(model.id)[:40] for model in self.models]
        if len(line + ", ".join(names)) <= LINE:
            return line + ", ".join(names)
        shown = 1
        while shown < len(names) and len(line + ", ".join(names[: shown + 1])) + 14 <= LINE:
            shown += 1
        more = len(names) - shown
        return line + ", ".join(names[:shown]) + (f" and {more} more" if more else "")


def candidates(environ: Mapping[str, str]) -> list[Candidate]:
    """The addresses to ask: those in the environment, then the usual ports of this machine; without duplicates."""
    found: list[Candidate] = []
    if url := environ.get("OLLAMA_URL", "").strip().rstrip("/"):
        found.append(Candidate(bare(url), "ollama", "OLLAMA_URL"))
    if host := environ.get("OLLAMA_HOST", "").strip():
        found.append(Candidate(url_of_host(host), "ollama", "OLLAMA_HOST"))
    found += [Candidate(f"http://127.0.0.1:{port}", name) for port, name in USUAL]
    return list({address_of(each.root): each for each in reversed(found)}.values())[::-1]


def bare(url: str) -> str:
    """Ollama's address without the path of one of its APIs, which is often added."""
    return url.rstrip("/").removesuffix("/v1").removesuffix("/api")


def url_of_host(text: str) -> str:
    """``OLLAMA_HOST`` as Ollama reads it (envconfig.Host): ``host``, ``host:port``, ``:port``, ``0.0.0.0``, a URL.

    An address such as 0.0.0.0, on which a server listens, becomes loopback.
    """
    text = text.strip().strip("\"'")
    scheme, has_scheme, rest = text.partition("://")
    if not has_scheme:
        scheme, rest = "http", text
    default = {"http": 80, "https": 443}.get(scheme, OLLAMA_PORT) if has_scheme else OLLAMA_PORT
    if scheme not in ("http", "https"):
        scheme = "http"
    rest, slash, path = rest.partition("/")
    host, port = _host_and_port(rest, default)
    shown = f"[{host}]" if ":" in host else host
    return bare(f"{scheme}://{shown}:{port}{slash}{path}")


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        host, colon, port = text.rpartition(":")
        host, port = (host.strip("[]"), port) if colon else (text, "")
    else:
        host, port = str(address), ""
    if not host or host in ALL_HERE:
        host = "127.0.0.1"
    valid = port.isascii() and port.isdigit() and 0 < int(port[:6]) <= 65535
    return host, int(port) if valid else default


def identify(candidate: Candidate, replies: Mapping[str, Reply], *, waited: bool = False) -> Server | str | None:
    """The server that gave `replies` (by path); a remark for people if it is no model server; None if nothing answered.

    `waited`: whether the time ran out. On this machine that means that something is listening.
    """
    where = candidate.root.partition("://")[2]
    if not replies:
        return (
            f"{where} takes connections, but says nothing: passed over" if waited and not candidate.named_by else None
        )
    tags, models = replies.get(TAGS), replies.get(MODELS)
    tagged, rows = _mapping(tags), _rows(models)
    is_ollama = isinstance(tagged.get("models"), list)
    name = _owner(rows) or ("llamacpp" if any("llama.cpp" in r.server for r in replies.values()) else None)
    if name == "manallm" or any("manallm-proxy" in reply.server for reply in replies.values()):
        return other_proxy(candidate) if candidate.named_by == "OLLAMA_HOST" else None
    # llama-server answers Ollama's path too, with OpenAI's `data` in addition to `models`
    if tags is not None and is_ollama and name is None and ("data" not in tagged or candidate.usual == "ollama"):
        return _server("ollama", "ollama", candidate.root, OllamaWire().listed(tags.body or b"").models)
    if models is not None and rows is not None:
        listed = OpenAIWire().listed(models.body or b"").models
        name = name or (candidate.usual if candidate.usual != "ollama" else "server")
        return _server(name, "openai", f"{candidate.root}/v1", listed)
    statuses = sorted({reply.status for reply in replies.values()})
    if statuses[0] in (401, 403):
        return f"{where} wants a key ({statuses[0]}): add it to the configuration if it is a model server"
    if any(reply.body is None and reply.status == 200 for reply in replies.values()):
        return f"{where} answers without end, or too slowly: passed over"
    return f"{where} answers, but is no model server that is known here: passed over"


def other_proxy(candidate: Candidate) -> str:
    """The remark on another manallm-proxy, which ``OLLAMA_HOST`` names for Ollama's clients."""
    return f"{candidate.root.partition('://')[2]} is a manallm-proxy (OLLAMA_HOST): passed over"


def _server(name: str, kind: Kind, base_url: str, models: Sequence[ModelInfo]) -> Server:
    return Server(DiscoveredServer(name, kind, base_url), tuple(model for model in models if is_model_name(model.id)))


def _mapping(reply: Reply | None) -> dict[str, Any]:
    if reply is None or reply.status != 200 or reply.body is None:
        return {}
    try:
        found = decode(reply.body)
    except DecodeErrors:
        return {}
    return found if isinstance(found, dict) else {}


def _rows(reply: Reply | None) -> list[Any] | None:
    rows = _mapping(reply).get("data")
    return rows if isinstance(rows, list) else None


def _owner(rows: list[Any] | None) -> str | None:
    owners = (row.get("owned_by") for row in rows or () if isinstance(row, dict))
    return next((_OWNERS[owner] for owner in owners if isinstance(owner, str) and owner in _OWNERS), None)
