"""The request's ``Cache-Control``, as far as it concerns cached answers."""

from __future__ import annotations

from multidict import CIMultiDictProxy

from manallm_proxy.contract.records import define


@define
class CacheControl:
    """``max_age``: max age of a cached answer in seconds; None: any age."""

    may_store: bool = True
    """Whether the answer may be cached. If not, the cache is not read either."""
    may_read: bool = True
    """Whether a cached answer may be returned."""
    max_age: float | None = None

    @classmethod
    def of(cls, headers: CIMultiDictProxy[str]) -> CacheControl:
        """Parses RFC 9111, section 5.2.1. Ignores other directives, and an age that is not a number."""
        directives = cls()
        for value in headers.getall("Cache-Control", ()):
            for directive in value.lower().split(","):
                name, _, argument = directive.strip().partition("=")
                if name == "no-store":
                    directives.may_store = directives.may_read = False
                elif name == "no-cache":
                    directives.may_read = False
                elif name == "max-age" and (digits := argument.strip('"')).isdecimal() and digits.isascii():
                    age = float(digits[:12])
                    directives.max_age = age if directives.max_age is None else min(age, directives.max_age)
        if directives.max_age == 0:
            directives.may_read = False
        return directives
