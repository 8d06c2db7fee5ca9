"""The forms in which a target is asked one request, one after the other, as its refusals ask for them."""

from __future__ import annotations

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
    _reshaped: list[Request] = field(factory=list, repr=False)
    """Without their contents, each of which may be as long as the request."""

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
        again = self.wire.reshape(self._asked, self.entry, status, refusal)
        if (again is None or again.digest() in self._sent) and status in _OF_THE_FORM:
            again = self.wire.request(self.call, self.entry)
        if again is None or (digest := again.digest()) in self._sent:
            return None
        self._sent.add(digest)
        self._asked = again.call or self._asked
        self._reshaped.append(evolve(again, content=b"", call=None))
        return again

    def answered(self) -> bool:
        """It was answered with 200. Returns whether it has just been learned that usage is not to be asked for."""
        learned = [self.wire.remember_reshaped(self.entry, each) for each in self._reshaped]
        return any(learned)
