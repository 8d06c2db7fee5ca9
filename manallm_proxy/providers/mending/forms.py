"""The forms in which a target is asked one request, one after the other, as its refusals ask for them."""

from __future__ import annotations

import re
from typing import Final

from attrs import evolve, field

from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry
from manallm_proxy.providers.wire import Request, Wire

RESHAPES: Final = 12
"""How often one request is sent again in the form that a refusal asks for: as many fields and orders are known to be
refused, and servers name one at a time."""
_OF_THE_FORM: Final = (400, 422, 500)
"""Statuses of refusals that another form may mend; local servers answer 500 to some."""
_DIGITS: Final = re.compile(rb"\d+")
_QUOTES: Final = re.compile(rb"[\"'](?:role|messages|input|model)\\{0,9}[\"']\s{0,9}:")
"""In a refusal that quotes the request, in which many a member is named that was not refused."""


@define
class Forms:
    """The forms of ``call`` for ``entry``'s target. None is sent twice."""

    wire: Wire
    call: Call
    entry: Entry
    _asked: Call = field(init=False, repr=False)
    """The call as its latest form is."""
    _sent: set[bytes] = field(factory=set, repr=False)
    """Their digests."""
    _reshaped: list[tuple[Request, bool]] = field(factory=list, repr=False)
    """Without their contents, each of which may be as long as the request; and whether their refusals quoted it."""
    _words: bytes = field(default=b"", repr=False)
    """The latest refusal without its digits."""

    def refused(self, request: Request) -> None:
        """`request`, the first form, was refused."""
        self._asked = self.call
        self._sent.add(request.digest())

    def next(self, status: int, refusal: bytes) -> Request | None:
        """What to send after the `refusal` of the latest form; None: nothing would mend it.

        It may be what another request has taught, which was answered meanwhile. Raises BadResponse, see `Wire.reshape`.
        """
        if len(self._sent) > RESHAPES:
            return None
        before, self._words = self._words, _DIGITS.sub(b"", refusal)
        if self._words == before and self._reshaped:
            self._reshaped.pop()  # it has mended nothing
        again = self.wire.reshape(self._asked, self.entry, status, refusal)
        if (again is None or again.digest() in self._sent) and status in _OF_THE_FORM:
            again = self.wire.request(self.call, self.entry)
        if again is None or (digest := again.digest()) in self._sent:
            return None
        self._sent.add(digest)
        self._asked = again.call or self._asked
        self._reshaped.append((evolve(again, content=b"", call=None), _QUOTES.search(refusal) is not None))
        return again

    def answered(self) -> bool:
        """It was answered with 200. Returns whether it has just been learned that usage is not to be asked for.

        The last form is the one that is known to have mended something. Those before it may have left out what was only
        quoted.
        """
        last = len(self._reshaped) - 1
        sure = [each for n, (each, is_quoted) in enumerate(self._reshaped) if n == last or not is_quoted]
        learned = [self.wire.remember_reshaped(self.entry, each) for each in sure]
        return any(learned)
