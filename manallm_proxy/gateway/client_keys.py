"""Client keys: who calls, what they may use, how much of it, and the refusals that follow.

No I/O, and the time is an argument; `credentials` reads the headers, `config` the keys.

No key is stored, only its SHA-256, and a caller is looked up by the digest of the presented key: one hash and one
dictionary look-up, however many keys there are. The look-up need not be constant-time, since it compares digests:
timing may reveal how the digest of a guess lies in the dictionary, but a guess with a similar digest is no closer to
the key, and a key of 256 random bits cannot be guessed. No comparison touches the bytes of a key, and unknown keys
leave no state and no metric label.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from attrs import field

from manallm_proxy.config.keys_model import ClientKey
from manallm_proxy.contract.budgets import Budget
from manallm_proxy.contract.errors import AdminOnly, InvalidKey, KeyLimited, ModelNotAllowed
from manallm_proxy.contract.records import define
from manallm_proxy.gateway.ratelimit import TokenReservation, TokenWindow, Window, format_duration

LONGEST: Final = 1024
"""Max characters of a presented key; longer ones are not hashed."""
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_BLANKS: Final = " \t"
"""The white space that HTTP strips (RFC 9110, section 5.5). Unicode has more, which a server before us may keep."""
_HOW: Final = "send it as 'Authorization: Bearer KEY' (or as api-key, or as x-api-key)"


def presented(authorization: Sequence[str], *others: Sequence[str]) -> str:
    """The one key in the values of ``Authorization`` and of the `others` headers. Raises InvalidKey if there is none.

    Some clients send the same key in two headers, which is accepted. Two different keys, or one header twice, are not:
    a server before us may have checked the other one. Schemes other than Bearer are ignored: they are for that server.
    """
    keys: set[str] = set()
    for values in (authorization, *others):
        if len(values) > 1:
            raise InvalidKey(f"a header for the API key is given twice; {_HOW}, once")
    for value in authorization:
        scheme, _, rest = value.strip(_BLANKS).partition(" ")
        if scheme.lower() == "bearer":
            keys.add(rest.strip(_BLANKS))
    keys.update(value.strip(_BLANKS) for values in others for value in values)
    keys.discard("")
    if not keys:
        raise InvalidKey(f"no API key is given; {_HOW}. Whoever runs this proxy can make one")
    if len(keys) > 1:
        raise InvalidKey(f"two different API keys are given; {_HOW}, once")
    key = keys.pop()
    if len(key) > LONGEST or _VISIBLE.fullmatch(key) is None:
        raise InvalidKey("this cannot be an API key: one is visible ASCII without blanks; check what the client sends")
    return key


def digest_of(key: str) -> str:
    """SHA-256 of a key, as the configuration holds it."""
    return hashlib.sha256(key.encode()).hexdigest()


@define(eq=False)
class Caller:
    """The holder of one key: its entry in the configuration, and what it has used. Outlives reloads."""

    key: ClientKey
    in_flight: int = 0
    budget: Budget | None = None
    _window: Window | None = None
    _tokens: TokenWindow | None = None
    _allowed: re.Pattern[str] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.update(self.key, _any_of(self.key.models))

    def update(self, key: ClientKey, allowed: re.Pattern[str]) -> None:
        """Applies a changed entry after a reload; what has been used still counts. `allowed` matches its models."""
        self.key, self.budget = key, key.whole_budget
        self._allowed = allowed
        limit, tokens = key.requests_per_minute, key.tokens_per_minute
        self._window = (self._window or Window(limit)) if limit is not None else None
        self._tokens = (self._tokens or TokenWindow(tokens)) if tokens is not None else None
        if self._window is not None and limit is not None:
            self._window.limit = limit
        if self._tokens is not None and tokens is not None:
            self._tokens.limit = tokens

    def ask(self, now: float) -> None:
        """Counts one more request, whose body may be on its way. Raises KeyLimited if the key may make no more now."""
        self.refuse_many()
        window = self._window
        if window is not None and not window.take(now):
            raise self.limited(window, window.next_in(now))

    @property
    def window(self) -> Window | None:
        """The window of its requests per minute; None: no limit."""
        return self._window

    def limited(self, window: Window, wait: float) -> KeyLimited:
        """The error for one request more than `window` allows; `wait` in seconds."""
        return KeyLimited(
            f"key '{self.key.name}' has made {window.limit} requests within a minute, as many as it may; "
            f"try again in {format_duration(wait)}",
            retry_after=wait,
        )

    def enter(self) -> None:
        """Its body is complete: it is in flight until `leave`. Raises KeyLimited if too many are in flight by now."""
        self.refuse_many()
        self.in_flight += 1

    def refuse_many(self) -> None:
        """Raises KeyLimited if too many are in flight."""
        most = self.key.concurrent_requests
        if most is not None and self.in_flight >= most:
            raise KeyLimited(
                f"key '{self.key.name}' has {most} requests in flight, as many as it may have at once; "
                "try again when one has ended",
                retry_after=1.0,
            )

    def leave(self) -> None:
        self.in_flight -= 1

    @property
    def tokens(self) -> TokenWindow | None:
        """The window of its tokens per minute; None: no limit."""
        return self._tokens

    def reserve(self, tokens: int, likely: int, now: float) -> TokenReservation | None:
        """Reserves tokens until `settle`, see `TokenWindow.take`; None: no limit. Raises KeyLimited."""
        if self._tokens is None:
            return None
        taken = self._tokens.take(tokens, now, likely)
        if taken is None:
            raise self.too_many(tokens, self._tokens, self._tokens.next_in(tokens, now))
        return taken

    def too_many(self, tokens: int, window: TokenWindow, wait: float | None) -> KeyLimited:
        """The error for a request of `tokens`; `wait` in seconds, None: it can never pass."""
        again = "ask for less (max_tokens)" if wait is None else f"try again in {format_duration(wait)}"
        return KeyLimited(
            f"key '{self.key.name}' may use {window.limit} tokens within a minute, and this request may "
            f"take {tokens}, its max_tokens included; {again}",
            retry_after=wait,
        )

    def settle(self, taken: TokenReservation, tokens: int, now: float) -> None:
        """Replaces the reservation by the actual number of `tokens`."""
        if self._tokens is not None:
            self._tokens.settle(taken, tokens, now)

    def rate_headers(self, now: float) -> dict[str, str]:
        """``x-ratelimit-*`` as OpenAI sends them; empty without a limit."""
        headers: dict[str, str] = {}
        for what, window in (("requests", self._window), ("tokens", self._tokens)):
            if window is not None:
                headers[f"x-ratelimit-limit-{what}"] = str(window.limit)
                headers[f"x-ratelimit-remaining-{what}"] = str(window.remaining(now))
                headers[f"x-ratelimit-reset-{what}"] = format_duration(window.reset_in(now))
        return headers

    def may_use(self, name: str) -> bool:
        """Whether the key allows an alias or a target (``provider/model``)."""
        return self._allowed.fullmatch(name) is not None

    def require(self, *names: str) -> None:
        """Raises ModelNotAllowed if the key allows none of the `names`, which all mean the same model."""
        if not any(map(self.may_use, names)):
            which = f"may not use this model, only: {', '.join(self.key.models)}; GET /v1/models lists them, and"
            if not self.key.models:
                which = "may use no model;"
            raise ModelNotAllowed(
                f"key '{self.key.name}' {which} whoever runs this proxy can allow more", param="model"
            )

    def require_admin(self) -> None:
        """Raises AdminOnly if it is not an operator's key."""
        if not self.key.admin:
            raise AdminOnly(
                f"key '{self.key.name}' may not see this; it takes one with 'admin: true' in the configuration"
            )


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """A regular expression for any of `patterns`, in which only ``*`` is special: any text, slashes included."""
    escaped = (each.replace("[", "[[]").replace("?", "[?]") for each in patterns)
    return re.compile("|".join(fnmatch.translate(each) for each in escaped) or r"(?!)")


@define(eq=False)
class Keyring:
    """All callers of one generation, by digest. Empty: no key is required."""

    callers: Mapping[str, Caller] = field(factory=dict, repr=False)
    _changes: list[tuple[Caller, ClientKey, re.Pattern[str]]] = field(factory=list, repr=False)
    """Callers shared with the previous ring whose entry has changed, with what `adopt` will apply."""

    @classmethod
    def build(cls, keys: Iterable[ClientKey], before: Keyring | None = None) -> Keyring:
        """The ring that follows `before`. Callers in both are shared, and change only in `adopt`."""
        callers: dict[str, Caller] = {}
        changes: list[tuple[Caller, ClientKey, re.Pattern[str]]] = []
        for key in keys:
            digest = key.sha256.lower()
            caller = before.callers.get(digest) if before is not None else None
            if caller is None:
                caller = Caller(key)
            elif caller.key != key:
                changes.append((caller, key, _any_of(key.models)))
            callers[digest] = caller
        return cls(callers, changes)

    def adopt(self) -> None:
        """Applies changed entries to the callers shared with the previous ring. Cannot fail."""
        for change in self._changes:
            Caller.update(*change)
        self._changes.clear()

    def __bool__(self) -> bool:
        return bool(self.callers)

    def __iter__(self) -> Iterator[Caller]:
        return iter(self.callers.values())

    def __contains__(self, caller: Caller) -> bool:
        """False for a caller whose key has been revoked."""
        return self.callers.get(caller.key.sha256.lower()) is caller

    def caller(self, key: str) -> Caller:
        """The holder of `key`. Raises InvalidKey if there is none."""
        caller = self.callers.get(digest_of(key))
        if caller is None:
            raise InvalidKey("this API key is not known here; check it, or ask whoever runs this proxy for a new one")
        return caller
