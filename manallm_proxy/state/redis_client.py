"""Makes a client of Redis or Valkey from a URL, with the library's own retries switched off.

By default it tries a dead server ten times within four seconds (seen with redis-py 8.1), so every limit is set here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

SENTINEL_PORT: Final = 26379
LONGEST_WAIT: Final = 1.0
"""The library's own timeout in seconds. Callers give up earlier (`state.link.BUDGET`), except if the answer arrived
while this process was busy, which the library does not consider."""


def client_of(url: str) -> Callable[[], Any]:
    """A function that opens a client for `url` (see `config.state_url`). A client connects with its first command.

    The library is imported here, since importing takes longer than a use may. Any exception that it raises when a
    client is opened means that it does not accept the URL.
    """
    redis = import_module("redis.asyncio")
    retry = import_module("redis.asyncio.retry").Retry(import_module("redis.backoff").NoBackoff(), 0)
    limits: dict[str, Any] = {"socket_timeout": LONGEST_WAIT, "socket_connect_timeout": LONGEST_WAIT, "retry": retry}
    return partial(_open, redis, url, limits)


def _open(redis: Any, url: str, limits: dict[str, Any]) -> Any:
    kind, plus, rest = url.partition("+")
    if not plus or "://" in kind:
        return redis.Redis.from_url(url, **limits)
    kind_of_cluster, _, place = rest.partition("://")
    if kind_of_cluster == "cluster":
        return redis.RedisCluster.from_url(f"{kind}://{place}", **limits)
    return _master(redis, kind, f"{kind}://{place}", limits)


def _master(redis: Any, kind: str, url: str, limits: dict[str, Any]) -> Any:
    """A client of the current master, as named by the sentinels of ``host:port,host:port/service/db``."""
    _, _, rest = url.partition("://")  # `urlsplit` takes no more than one IPv6 address
    place, _, query = rest.partition("?")
    place, service, *db = place.split("/")
    user, _, hosts = place.rpartition("@")
    name, _, password = user.partition(":")
    sentinels = [_host(each) for each in hosts.split(",")]
    login = {"username": unquote(name) or None, "password": unquote(password) or None} if user else {}
    more: dict[str, Any] = dict(parse_qsl(query))
    secure = {"ssl": True} if kind == "rediss" else {}
    sentinel = redis.Sentinel(sentinels, sentinel_kwargs={**limits, **secure}, **limits, **secure, **login, **more)
    return _Master(sentinel, sentinel.master_for(unquote(service), db=int(db[0]) if db and db[0] else 0))


class _Master:
    """A master's client. The library's own would leave the connections to the sentinels open."""

    def __init__(self, sentinel: Any, client: Any) -> None:
        self._sentinel, self._client = sentinel, client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def aclose(self) -> None:
        for each in (self._client, *self._sentinel.sentinels):
            await each.aclose()


def _host(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "", parts.port or SENTINEL_PORT
