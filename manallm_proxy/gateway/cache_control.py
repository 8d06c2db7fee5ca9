"""What a request's ``Cache-Control`` asks of kept answers."""

from __future__ import annotations

from multidict import CIMultiDictProxy

from manallm_proxy.contract.records import define


@define
class CacheControl:
    """``max_age``: seconds that a kept answer may be old; None: any."""

    may_store: bool = True
    """Whether the answer may be kept. If not, none that is kept is read either."""
    may_read: bool = True
    """Whether a kept answer will do."""
    max_age: float | None = None

    @classmethod
    def of(cls, headers: CIMultiDictProxy[str]) -> CacheControl:
        """RFC 9111, section 5.2.1. What means nothing here, and an age that is no number, is passed over."""
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
