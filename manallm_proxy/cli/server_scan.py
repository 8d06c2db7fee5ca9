"""Queries the addresses of `discovery`: all at once, within a second, at most a megabyte each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Final

from manallm_proxy.cli.discovery import (
    MODELS,
    NO_HTTP,
    TAGS,
    Candidate,
    Reply,
    Server,
    candidates,
    identify,
    other_proxy,
)
from manallm_proxy.config.model import DiscoveredServer, Listen
from manallm_proxy.config.own_address import is_own
from manallm_proxy.config.values import InvalidValue, base_url
from manallm_proxy.contract.provider_errors import BadResponse, ProviderError
from manallm_proxy.contract.records import frozen
from manallm_proxy.http_client.api import Address
from manallm_proxy.http_client.pool import Pool

LONGEST: Final = 1.0
"""Max seconds for the whole scan."""
BODY_LIMIT: Final = 1 << 20


@frozen
class ScanResult:
    """The servers found, and remarks for people on answers that were not understood."""

    servers: tuple[Server, ...] = ()
    remarks: tuple[str, ...] = ()
    ollama_url: str | None = None
    """Ollama's address in the environment, or as found; None: unknown."""

    @property
    def found(self) -> tuple[DiscoveredServer, ...]:
        return tuple(server.found for server in self.servers)

    def lines(self) -> list[str]:
        """One line for each server and remark."""
        return [f"found {server.line()}" for server in self.servers] + list(self.remarks)

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """`environ` with ``OLLAMA_URL``, which the quickstart asks for, if ``OLLAMA_HOST`` names another address."""
        named = {"OLLAMA_URL": self.ollama_url} if self.ollama_url is not None else {}
        return {**environ, **named}


async def scan_servers(environ: Mapping[str, str], own: Listen | None = None) -> ScanResult:
    """Scans all candidates. Never raises: an address that cannot be queried counts as absent.

    `own`: where this proxy will listen. ``OLLAMA_HOST`` may name that, or another proxy, for Ollama's clients.
    """
    there = candidates(environ)
    asked = [each for each in there if own is None or not is_own(own, each.root)]
    ourselves = [each for each in there if each not in asked and each.named_by == "OLLAMA_HOST"]
    outcomes = await asyncio.gather(*(_identify(each) for each in asked))
    seen = list(zip(asked, outcomes, strict=True))
    return ScanResult(
        tuple(outcome for outcome in outcomes if isinstance(outcome, Server)),
        (
            *(f"OLLAMA_HOST is {each.root}, which is this proxy itself: passed over" for each in ourselves),
            *(
                outcome if isinstance(outcome, str) else f"nothing answers at {each.root} ({each.named_by})"
                for each, outcome in seen
                if isinstance(outcome, str) or (outcome is None and each.named_by)
            ),
        ),
        next((each.root for each, outcome in seen if each.named_by and outcome != other_proxy(each)), None),
    )


async def _identify(candidate: Candidate) -> Server | str | None:
    """Requests both lists at once; uses what has arrived within the time."""
    replies: dict[str, Reply] = {}
    waited = False
    until = asyncio.get_running_loop().time() + LONGEST
    try:
        pool = Pool(Address("discovery", base_url(candidate.root)))
    except InvalidValue as wrong:
        return f"{candidate.named_by}: {wrong}"
    try:
        async with asyncio.timeout_at(until):
            await asyncio.gather(*(_ask(pool, path, replies) for path in (TAGS, MODELS)))
    except TimeoutError:
        waited = True
    finally:
        with contextlib.suppress(Exception):  # no longer needed, whatever its result
            await pool.close()
    return identify(candidate, replies, waited=waited)


async def _ask(pool: Pool, path: str, replies: dict[str, Reply]) -> None:
    """Stores the reply's head as soon as it arrives, and the body once complete."""
    body = bytearray()
    try:
        response = await pool.request("GET", path, request_id=None, connect=LONGEST)
        server = response.headers.get("Server", "")
        replies[path] = Reply(response.status, server)
        while part := await response.read():
            body += part
            if len(body) > BODY_LIMIT:
                response.close()
                return
        response.release()
        replies[path] = Reply(response.status, server, bytes(body))
    except BadResponse:
        replies.setdefault(path, Reply(NO_HTTP))
    except ProviderError:
        pass
