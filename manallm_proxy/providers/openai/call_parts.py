"""Corrects parts of streamed tool calls from servers that repeat the name although no new call begins.

OpenAI sends id and name with a call's first part. vLLM sends both with every part if ``tool_choice`` names the tool,
with another id each time, and other servers end a call with its name and no arguments: taken as a beginning, that would
be a second call, which the model never made. Bridges may send the id in a part before the name.
"""

from __future__ import annotations

from attrs import evolve, field

from manallm_proxy.contract.answers import AnswerLimits, Delta, ToolCall, new_call_id
from manallm_proxy.contract.records import define
from manallm_proxy.providers.answer_bounds import refuse_many_calls
from manallm_proxy.providers.named_calls import require_names


@define
class _Latest:
    """The last call at one index."""

    name: str
    id: str
    """The server's id; may be empty."""
    has_arguments: bool
    has_odd_ids: bool = False
    """Whether its id changed between its arguments, so that a new id means nothing."""
    repeated: ToolCall | None = None
    """A part that repeats its name without arguments: another call begins there only if arguments follow."""

    def is_new(self, part: ToolCall) -> bool:
        """Whether the id of `part` shows that it belongs to another call."""
        return bool(part.id) and part.id != self.id and not self.has_odd_ids


@define
class CallParts:
    """One stream's tool calls. Every named part that it returns has an id."""

    _latest: dict[tuple[int, int], _Latest] = field(factory=dict)
    """The last call by choice and index."""
    _nameless: dict[tuple[int, int], list[ToolCall]] = field(factory=dict)
    """By choice and index: what arrived of a call before its name."""
    _limits: AnswerLimits = AnswerLimits()
    _number: int = 0
    """Of the calls that have begun."""
    _unnamed: int = 0
    """Parts that came before a name."""

    def read(self, delta: Delta) -> Delta:
        """`delta` with its parts corrected, and empty ones left out.

        Raises BadResponse if it ends a choice with a nameless call, see `require_names`, and for too many calls.
        """
        if not delta.tool_calls and not (delta.finish and self._nameless):
            return delta
        parts = [self._read((delta.index, part.index), part) for part in delta.tool_calls]
        if delta.finish:
            ended = [place for place in self._nameless if place[0] == delta.index]
            require_names(
                Delta(tool_calls=tuple([_joined(self._nameless.pop(place)) for place in ended])), delta.finish
            )
        return evolve(delta, tool_calls=tuple([part for part in parts if part is not None]))

    @property
    def has_nameless(self) -> bool:
        """Whether a call has begun that has no name yet."""
        return bool(self._nameless)

    def _read(self, place: tuple[int, int], part: ToolCall) -> ToolCall | None:
        known = self._latest.get(place)
        arguments = part.arguments.lstrip()
        if known is None:
            return self._first(place, part)
        if part.name == known.name and known.has_arguments and not arguments and not known.is_new(part):
            known.repeated = part
            blanks = part.arguments  # it may be in the middle of a text
            return ToolCall("", blanks, "", part.index, part.extra) if blanks or part.extra else None
        repeated, known.repeated = known.repeated, None
        if repeated is not None and arguments and not part.name:
            part = evolve(part, name=repeated.name, id=repeated.id)
        if not part.name:
            known.has_arguments = known.has_arguments or bool(arguments)
            return part
        if known.has_arguments and arguments and not arguments.startswith("{"):  # the call goes on, whatever its id is
            known.has_odd_ids = known.has_odd_ids or part.id not in ("", known.id)
            return evolve(part, id=part.id or new_call_id())
        return self._begin(place, part)

    def _first(self, place: tuple[int, int], part: ToolCall) -> ToolCall | None:
        if part.name:
            before = self._nameless.pop(place, None)
            return self._begin(place, part if before is None else _joined([*before, part]))
        self._nameless.setdefault(place, []).append(part)
        self._unnamed += 1
        refuse_many_calls(self._unnamed, self._limits)
        return None

    def _begin(self, place: tuple[int, int], part: ToolCall) -> ToolCall:
        self._number += 1
        refuse_many_calls(self._number, self._limits)
        known = self._latest.get(place)
        odd = known is not None and known.has_odd_ids
        self._latest[place] = _Latest(part.name, part.id, bool(part.arguments.strip()), odd)
        return part if part.id else evolve(part, id=new_call_id())


def _joined(parts: list[ToolCall]) -> ToolCall:
    """Merges the parts of one call, of which the last may have its name."""
    last, id_ = parts[-1], next((part.id for part in reversed(parts) if part.id), "")
    extra = {key: value for part in parts for key, value in part.extra.items()}
    return ToolCall(last.name, "".join([part.arguments for part in parts]), id_, last.index, extra)
