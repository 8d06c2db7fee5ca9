"""The mends of a chat that was refused, in the order in which they are tried.

A mend reads the refusal. If it is about what this one mends, it returns the request changed, and what the target may
refuse of everyone: that is learned once the target has answered, and done at once from then on (`accepted`).
What each looks for and does has a file beside this one, with the providers' words.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from attrs import evolve, field

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.records import define
from manallm_proxy.providers.max_tokens import NEWER, OLDER, named
from manallm_proxy.providers.mending.broken_arguments import refuses_arguments, with_whole_arguments
from manallm_proxy.providers.mending.effort import (
    BESIDE_TOOLS,
    nearest_effort,
    refuses_beside_tools,
    unthinking_with_tools,
)
from manallm_proxy.providers.mending.evidence import is_for_all
from manallm_proxy.providers.mending.forced_choice import unthinking_for_choice
from manallm_proxy.providers.mending.history import (
    EXTRAS,
    IDS,
    NEEDED,
    REASONING,
    SIGNATURES,
    refused_members,
    refuses_signatures,
    without_members,
    without_signatures,
)
from manallm_proxy.providers.mending.length import clamp_max_tokens, wanted_name
from manallm_proxy.providers.mending.missing_results import misses_results, with_results
from manallm_proxy.providers.mending.refused_fields import LEFT_OUT, refused_field, without_refused
from manallm_proxy.providers.mending.tool_schemas import (
    JOINED,
    SCHEMAS,
    refused_form,
    refuses_schemas,
    with_object_schemas,
)
from manallm_proxy.providers.mending.turns import ORDERS, refused_order

USAGE: Final = "stream_options"
"""What may be refused: the field by which we, not the client, ask for tokens to be counted."""
CONTRARY: Final = {
    OLDER: (NEWER,),
    NEWER: (OLDER,),
    REASONING: (*NEEDED,),
    **dict.fromkeys(NEEDED, (REASONING,)),
}
"""See `learned.Learned`."""
_OF_HISTORY: Final = frozenset({REASONING, SIGNATURES, IDS, EXTRAS, *NEEDED, *ORDERS})
_OF_TRANSLATED: Final = frozenset({*LEFT_OUT, OLDER, NEWER})
"""Done only to a request that a door has made: a chat's client means what it sets."""


@define
class Refused:
    """A request that a target has refused, and its ``words``.

    ``call``: as a door made it, or as an earlier mend left it. ``sent``: without what was ``known`` to be refused.
    ``is_forced``: whether a call that must be made was asked for as structured output.
    """

    call: Call
    sent: Call
    known: frozenset[str]
    words: bytes = field(repr=False)
    is_forced: bool

    @property
    def is_chat(self) -> bool:
        return self.call.endpoint is Endpoint.CHAT

    def to(self, changed: Call, *refused: str) -> Mended | None:
        """It has become `changed`; None: there was nothing to change."""
        return Mended(changed, refused) if changed is not self.sent else None


@define
class Mended:
    """``refused``: what may be learned."""

    call: Call
    refused: Collection[str] = ()


Mend = Callable[[Refused], Mended | None]
"""None: the refusal is about something else, or there is nothing to change. What was sent, unchanged: nothing helps."""


def accepted(call: Call, refused: frozenset[str]) -> Call:
    """`call` without what its target is known to refuse; itself if there is nothing to change."""
    if of_history := refused & _OF_HISTORY:
        call = without_members(call, of_history)
    if SCHEMAS in refused or JOINED in refused:
        call = with_object_schemas(call, joins=JOINED in refused)
    if BESIDE_TOOLS in refused and call.endpoint is Endpoint.CHAT:
        call = unthinking_with_tools(call)
    if call.relays:
        return call
    for name in sorted(refused.intersection(LEFT_OUT)):
        call = without_refused(call, name)
    return named(call, NEWER) if OLDER in refused else named(call, OLDER) if NEWER in refused else call


def may_change(call: Call, refused: Collection[str]) -> bool:
    """Whether `accepted` may have to copy or decode `call`, without a look into it."""
    kept = {USAGE} | _OF_TRANSLATED if call.relays else {USAGE}
    return not kept.issuperset(refused)


def mended(call: Call, known: frozenset[str], status: int, refusal: bytes, *, is_forced: bool) -> Mended | None:
    """`call` as the target may accept it after the `refusal`, and what is to be learned then; None: nothing helps.

    `known`: what was learned of the target.
    """
    if not _is_mendable(call, status, refusal):
        return None
    refused = Refused(call, accepted(call, known), known, refusal, is_forced)
    found = next((found for mend in MENDS if (found := mend(refused)) is not None), None)
    if found is None or found.call is refused.sent:
        return None
    return evolve(found, refused=[what for what in found.refused if what == USAGE or is_for_all(refused.sent, what)])


def _is_mendable(call: Call, status: int, refusal: bytes) -> bool:
    if status == 500:  # llama.cpp's, for both
        return bool(refused_order(refusal)) or (call.endpoint is Endpoint.CHAT and refuses_arguments(refusal))
    return status in (400, 422)


def _other_name(it: Refused) -> Mended | None:
    """The length of a translated chat, under its other name."""
    name = wanted_name(it.sent, it.words) if it.is_chat and not it.call.relays else None
    return Mended(named(it.sent, name), (OLDER if name == NEWER else NEWER,)) if name is not None else None


def _members(it: Refused) -> Mended | None:
    """Members of the history, ids of its calls, the order of its turns. Clients send back what others have answered."""
    if not (refused := refused_members(it.words)):
        return None
    changed = without_members(it.sent, refused)
    if it.is_forced and not ORDERS.keys().isdisjoint(refused - it.sent.denied):
        changed = evolve(changed, denied=changed.denied | refused)  # of the message that is added there
    return it.to(changed, *refused)


def _signatures(it: Refused) -> Mended | None:
    """Those of another model. Not learned: its own it will get again."""
    return it.to(without_signatures(it.sent, it.words)) if refuses_signatures(it.words) else None


def _schemas(it: Refused) -> Mended | None:
    """Those of tools, for their form."""
    refuses = it.is_chat and refuses_schemas(it.words)
    return it.to(with_object_schemas(it.sent), refused_form(it.words)) if refuses else None


def _results(it: Refused) -> Mended | None:
    """Calls of the history that have none."""
    return it.to(with_results(it.sent)) if it.is_chat and misses_results(it.words) else None


def _arguments(it: Refused) -> Mended | None:
    """Those of calls in the history that are no JSON."""
    return it.to(with_whole_arguments(it.sent)) if it.is_chat and refuses_arguments(it.words) else None


def _too_long(it: Refused) -> Mended | None:
    """A length above what the target can give."""
    shorter = clamp_max_tokens(it.call, it.words) if it.call.cuts_length else None
    return Mended(accepted(shorter, it.known)) if shorter is not None else None


def _nearest_effort(it: Refused) -> Mended | None:
    """An effort that the target does not know, of a translated request."""
    nearest = nearest_effort(it.sent, it.words) if not it.call.relays else None
    return Mended(nearest) if nearest is not None else None


def _effort_beside_tools(it: Refused) -> Mended | None:
    """Any effort beside tools. Nothing else is tried then: these words name an effort, which would be left out."""
    refuses = it.is_chat and refuses_beside_tools(it.words)
    return Mended(unthinking_with_tools(it.sent), (BESIDE_TOOLS,)) if refuses else None


def _thinking_beside_choice(it: Refused) -> Mended | None:
    """A call that must be made while the model thinks."""
    return it.to(unthinking_for_choice(it.sent, it.words)) if it.is_chat else None


def _setting(it: Refused) -> Mended | None:
    """A setting of a translated request that its model takes no value for."""
    name = refused_field(it.sent, it.words) if not it.call.relays else ""
    return it.to(without_refused(it.sent, name), name) if name else None


def _usage(it: Refused) -> Mended | None:
    """``stream_options``, which Mistral and other strict servers refuse, if we have added it."""
    summary = it.call.summary
    if USAGE.encode() not in it.words or summary.wants_usage or not summary.stream:
        return None
    return Mended(evolve(it.sent, denied=it.sent.denied | {USAGE}), (USAGE,))


MENDS: Final[tuple[Mend, ...]] = (
    _other_name,
    _members,
    _signatures,
    _schemas,
    _results,
    _arguments,
    _too_long,
    _nearest_effort,
    _effort_beside_tools,
    _thinking_beside_choice,
    _setting,
    _usage,
)
"""The first one that finds something decides. A refusal may quote much, so what is rare and exact comes first."""
