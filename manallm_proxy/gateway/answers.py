"""Builds the answer cache from a configuration, and the keys under which answers are cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from manallm_proxy.config.model import Config
from manallm_proxy.config.state_url import redacted_state_url
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.events import Observer
from manallm_proxy.contract.targets import Chain
from manallm_proxy.openai.joined import joined_bytes
from manallm_proxy.openai.json_object import DecodeErrors, decode, encode, split_object
from manallm_proxy.openai.sliced import LARGE_BYTES
from manallm_proxy.state.answer_store import AnswerStore, Key, MemoryAnswers
from manallm_proxy.state.answers import Answers
from manallm_proxy.state.link import Link
from manallm_proxy.state.redis_answers import RedisAnswers
from manallm_proxy.state.redis_client import client_of

_APART: Final = ("stream", "stream_options")
"""Request fields that decide how an answer is sent, not what it is."""


def new_answers(config: Config, clock: Callable[[], float], observe: Observer) -> Answers:
    """The cache for `config`. Connects to nothing yet."""
    link = _link(config.state, observe)
    return Answers(_store(link, config, clock), url=config.state, link=link)


def adopt_answers(answers: Answers, config: Config, clock: Callable[[], float], observe: Observer) -> None:
    """Applies `config`, which serves from now on, to the existing cache. Cannot fail."""
    if answers.url != config.state:
        link = _link(config.state, observe)
        answers.replace(_store(link, config, clock), config.state, link)
    if isinstance(answers.store, MemoryAnswers):
        answers.store.limit = config.cache.memory
        answers.store.trim()


def _link(url: str | None, observe: Observer) -> Link | None:
    return Link(redacted_state_url(url), client_of(url), observe) if url is not None else None


def _store(link: Link | None, config: Config, clock: Callable[[], float]) -> AnswerStore:
    return RedisAnswers(link) if link is not None else MemoryAnswers(clock, config.cache.memory)


def fingerprint(chain: Chain, config: Config) -> bytes:
    """SHA-256 of what `chain` asks and of the servers that it asks: the same name with another URL is another chain."""
    content: list[object] = [chain.alias]
    for entry in chain:
        provider = config.providers[entry.target.provider]
        content.append(
            (
                repr(entry),
                provider.kind,
                provider.base_url,
                provider.api,
                provider.speaks,
                sorted(provider.headers.items()),
            )
        )
    return hashlib.sha256(repr(content).encode()).digest()


def key_of(body: bytes, door: str, fingerprint: bytes, caller: str | None) -> Key | None:
    """SHA-256 of the request without `_APART`; None if it cannot be distinguished from others."""
    request = canonical(body)
    if request is None:
        return None
    digest = hashlib.sha256(fingerprint)
    for part in (door.encode(), b"" if caller is None else b"=" + caller.encode(), request):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def canonical(body: bytes) -> bytes | None:
    """`body` without `_APART` in a canonical form, independent of white space and key order.

    If decoding would lose information (a duplicate key, of which a provider may read either value; digits of a number),
    the values keep their bytes, and only the order of the top-level keys is normalised.
    """
    try:
        if len(body) > LARGE_BYTES:  # of megabytes only the order is normalised: the rest takes a long call into C
            return _sorted(split_object(body)[0])
        plain = msgspec.json.format(body, indent=-1)
        try:
            request = decode(plain)
            if isinstance(request, dict) and encode(request) == plain:
                for key in _APART:
                    request.pop(key, None)
                return msgspec.json.encode(request, order="sorted")
        except DecodeErrors:
            pass
        values, _ = split_object(plain)
    except (*DecodeErrors, ProxyError):
        return None
    return _sorted(values)


def _sorted(values: Mapping[str, msgspec.Raw]) -> bytes:
    """The object of `values` without `_APART`, in the order of its keys."""
    parts: list[bytes | memoryview] = []
    for key in sorted(values):
        if key not in _APART:
            parts += (b"%b%b:" % (b"," if parts else b"{", encode(key)), memoryview(values[key]))
    return joined_bytes((*(parts or (b"{",)), b"}"))
