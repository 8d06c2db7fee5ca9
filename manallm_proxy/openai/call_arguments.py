"""A tool call's arguments as they arrive in pieces: detects their end, and the beginning of another call.

Each piece is scanned once. Decoding all of them again for each piece would take quadratic time.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import field

from manallm_proxy.contract.answers import ToolCall
from manallm_proxy.contract.records import define
from manallm_proxy.openai.joined import joined_text
from manallm_proxy.openai.json_object import object_bytes

_STRUCTURE: Final = re.compile(r'["{}\[\]]')
_IN_STRING: Final = re.compile(r'["\\]')


@define(eq=False)
class ObjectEnd:
    """Finds the end of a JSON object whose text arrives in pieces. The kinds of brackets are not distinguished."""

    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False
    """The next character is escaped: the last piece ended with a backslash."""

    def find(self, piece: str) -> int | None:
        """The index in `piece`, the next one, just after the object's last bracket; None: the object goes on."""
        if not piece:
            return None
        at, self._escaped = int(self._escaped), False
        while (found := (_IN_STRING if self._in_string else _STRUCTURE).search(piece, at)) is not None:
            at = found.end()
            match found[0]:
                case '"':
                    self._in_string = not self._in_string
                case "\\":
                    self._escaped = at == len(piece)
                    at += 1
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth -= 1
                    if self._depth <= 0:
                        return at
        return None


@define(eq=False)
class Arguments:
    """The arguments of one call, as received so far."""

    pieces: list[str] = field(factory=list, repr=False)
    """JSON text."""
    _end: ObjectEnd = field(factory=ObjectEnd)
    _looked_at: int = 0
    """Number of pieces scanned."""
    _is_object: bool | None = None
    """None: no object has ended yet."""

    @property
    def text(self) -> str:
        """All of it, joined once."""
        if len(self.pieces) > 1 and self._looked_at in (0, len(self.pieces)):
            whole = joined_text(self.pieces)  # which empties a long list, so that nothing is held twice
            self.pieces[:] = [whole]
            self._looked_at = min(self._looked_at, 1)
        return joined_text([*self.pieces])

    @property
    def are_whole(self) -> bool:
        """Whether the pieces so far make one complete JSON object."""
        while self._looked_at < len(self.pieces):
            piece = self.pieces[self._looked_at]
            self._looked_at += 1
            if self._is_object is not None:
                self._is_object = self._is_object and not piece.strip()
            elif self._end.find(piece) is not None:
                self._is_object = object_bytes(joined_text(self.pieces[: self._looked_at])) is not None
        return bool(self._is_object)


def begins_another(part: ToolCall, id_: str, arguments: Arguments) -> bool:
    """Whether `part` begins another call than the one with `id_` and `arguments`, which has the same index.

    Some servers give all calls index 0, others repeat the name in each part: so a name with another id begins a call
    only if the arguments before it are complete.
    """
    return bool(part.name) and part.id != id_ and arguments.are_whole
