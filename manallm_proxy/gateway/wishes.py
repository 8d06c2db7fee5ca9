"""What a request's ``Cache-Control`` asks of kept answers."""

from __future__ import annotations

from multidict import CIMultiDictProxy

from manallm_proxy.contract.records import define


@define
class Wishes:
    """``max_age``: seconds that a kept answer may be old; None: any."""

    keeps: bool = True
    """Whether the answer may be kept. If not, none that is kept is read either."""
    reads: bool = True
    """Whether a kept answer will do."""
    max_age: float | None = None

    @classmethod
    def of(cls, headers: CIMultiDictProxy[str]) -> Wishes:
        """RFC 9111, section 5.2.1. What means nothing here, and an age that is no number, is passed over."""
        wishes = cls()
        for value in headers.getall("Cache-Control", ()):
            for directive in value.lower().split(","):
                name, _, argument = directive.strip().partition("=")
                if name == "no-store":
                    wishes.keeps = wishes.reads = False
                elif name == "no-cache":
                    wishes.reads = False
                elif name == "max-age" and (digits := argument.strip('"')).isdecimal() and digits.isascii():
                    age = float(digits[:12])
                    wishes.max_age = age if wishes.max_age is None else min(age, wishes.max_age)
        if wishes.max_age == 0:
            wishes.reads = False
        return wishes
