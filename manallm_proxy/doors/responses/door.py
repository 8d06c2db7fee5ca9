"""``POST /v1/responses``."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from attrs import evolve, field

from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import VISION, Call, Endpoint
from manallm_proxy.contract.records import define
from manallm_proxy.doors.openai_reply import no_headers
from manallm_proxy.doors.responses.answer import AnswerItems
from manallm_proxy.doors.responses.items import INPUT, REFERENCE, Conversation
from manallm_proxy.doors.responses.native import NativeForm
from manallm_proxy.doors.responses.not_found import (
    ConversationTooLong,
    ItemNotFound,
    NotLookedUp,
    PreviousResponseNotFound,
)
from manallm_proxy.doors.responses.reply import Keep, ResponsesReply
from manallm_proxy.doors.responses.request import CALLED_HERE, SEALED, Asked, add_chat, read_request
from manallm_proxy.doors.responses.shell import Shell
from manallm_proxy.doors.responses.store import Owner, Store, Stored, weighed
from manallm_proxy.doors.responses.tools import OFFERING
from manallm_proxy.openai.caller_paths import CallerPaths
from manallm_proxy.openai.deferred_free import free_later
from manallm_proxy.openai.errors import error_body
from manallm_proxy.openai.json_object import decode_leniently, encode, encoder, holds
from manallm_proxy.openai.large import LARGE_PARTS, are_large, is_large, offload
from manallm_proxy.openai.request import made_request
from manallm_proxy.openai.request_fields import Fields, required

_PATIENCE: Final = 30.0
"""Seconds that a thread waits until what it wrote is kept, a few items in each turn of the loop."""
_NONE: Final[Mapping[int, bytes]] = MappingProxyType({})
_OFFERING: Final = re.compile(rb'"(?:%b)"' % "|".join(sorted(OFFERING)).encode())
Reading = tuple[Call, ResponsesReply]
"""The call, and its `Reply`."""


@define(eq=False)
class _Later:
    """Begins only once it is awaited: a coroutine that nobody awaits, since its client has left, gives a warning."""

    begin: Callable[[], Coroutine[Any, Any, Reading]] = field(repr=False)

    def __await__(self) -> Generator[Any, None, Reading]:
        return self.begin().__await__()


@define(eq=False)
class ResponsesDoor:
    """See `door.Door`. Every call has the whole conversation, since providers keep nothing of earlier requests."""

    store: Store
    name: str = "responses"
    scans: bool = False
    error_body = staticmethod(error_body)
    headers = staticmethod(no_headers)

    def read(self, body: bytes, client: Client) -> Reading | Awaitable[Reading]:
        """Raises InvalidRequest, PreviousResponseNotFound and ItemNotFound among others.

        Most requests are small and without references: these are read without awaiting anything.
        """
        if is_large(body):
            return _Later(partial(self._read_aside, body, client))
        asked = read_request(body)
        if asked.previous is not None or (not asked.is_plain and any(map(_is_looked_up, asked.items()))):
            return _Later(partial(self._read_on, body, asked, client))
        form = self._form(body, asked, (), None, client)
        return self._begun(form, _call_of(form, client), _kept(form) if asked.stores else (), client)

    async def _read_on(self, body: bytes, asked: Asked, client: Client) -> Reading:
        form = await self._completed(body, asked, client)
        call = await offload(form.is_long, _call_of, form, client)
        call.is_large = call.is_large or form.is_long
        kept = await offload(form.is_long, _kept, form)
        if form.is_long:
            form.shorten(is_translated=call.native is None)
        return self._begun(form, call, kept, client)

    async def _read_aside(self, body: bytes, client: Client) -> Reading:
        return await self._read_on(body, await offload(True, read_request, body), client)

    async def _completed(self, body: bytes, asked: Asked, client: Client) -> NativeForm:
        """With all that the request refers to. Raises ConversationTooLong."""
        history = await self._history(asked.previous, client.key)
        own = asked.items()
        if len(history) + len(own) > client.bounds.messages:
            raise ConversationTooLong(f"{client.bounds.messages} items (limits.messages)")
        known = await self._referred(own, client, sum(map(len, history)))
        items = await offload(are_large([*known.values()]), _resolved, own, known) if known else None
        return self._form(body, asked, history, items, client, known)

    def _form(
        self,
        body: bytes,
        asked: Asked,
        history: Sequence[bytes],
        items: list[Fields] | None,
        client: Client,
        known: Mapping[int, bytes] = _NONE,
    ) -> NativeForm:
        shell = Shell(self.store.new_id("resp"), asked.repeated, asked.summary.model)
        return NativeForm(body, asked, history, items, shell, client.request_id, _translated, known)

    def _begun(self, form: NativeForm, call: Call, kept: tuple[bytes, ...], client: Client) -> Reading:
        answer = partial(
            AnswerItems, self.store.new_id, form.asked.tool, SEALED in form.asked.include, limit=client.bounds.items
        )
        if not form.asked.stores:
            return call, ResponsesReply(form.shell, answer)
        keep = self._keeper(form.shell.id, client.key, kept)
        reply = ResponsesReply(form.shell, answer, keep, partial(self._knows, client.key))
        reply.keeps_long = len(kept) > LARGE_PARTS
        return call, reply

    async def _history(self, previous: str | None, owner: Owner) -> Sequence[bytes]:
        """All items of the previous response and of those that it continued.

        Raises PreviousResponseNotFound.
        """
        if previous is None:
            return ()
        stored = await self.store.response(owner, previous)
        if stored is None:
            raise PreviousResponseNotFound(previous)
        return (*stored.input, *stored.output)

    async def _referred(self, items: list[Fields], client: Client, before: int) -> dict[int, bytes]:
        """What the references among `items` stand for, by their place, and the stored form of reasoning that came back
        without what its provider wants. `before`: bytes of the history.

        Raises ItemNotFound, and ConversationTooLong.
        """
        wanted = {n: _reference(item, n) for n, item in enumerate(items) if _is_looked_up(item)}
        required = {id_ for n, id_ in wanted.items() if _is_reference(items[n])}
        found = await self.store.items(client.key, wanted.values(), required) if wanted else {}
        for n, id_ in [*wanted.items()]:
            if id_ in found:
                continue
            if _is_reference(items[n]):
                raise ItemNotFound(id_, f"input[{n}]")
            del wanted[n]
        if before + sum(len(found[id_]) for id_ in wanted.values()) > client.bounds.body:
            raise ConversationTooLong(f"{client.bounds.body} bytes (limits.body)")
        return {n: found[id_] for n, id_ in wanted.items()}

    async def _knows(self, owner: Owner, id_: str) -> bool:
        try:
            return await self.store.response(owner, id_) is not None
        except NotLookedUp:  # a new answer is better than none
            return False

    def _keeper(self, id_: str, owner: Owner, input_: tuple[bytes, ...]) -> Keep:
        loop, here = asyncio.get_running_loop(), threading.get_ident()

        def keep(response: dict[str, Any], items: list[Fields]) -> None:
            write = encoder(threading.get_ident() != here)
            output = tuple(map(write, items))
            free_later(*output)  # what is not kept after all would be freed in one go
            ids = tuple(str(item.get("id") or f"{id_}/{n}") for n, item in enumerate(items))
            stored = Stored(id_, write(response), input_, output, ids)
            if threading.get_ident() == here:
                self.store.keep(owner, stored)
            else:  # a large answer is written in a thread, and the store belongs to the loop's
                kept = asyncio.run_coroutine_threadsafe(self.store.keep_in_turns(owner, weighed(stored)), loop)
                with suppress(TimeoutError, CancelledError):  # the process ends
                    kept.result(_PATIENCE)

        return keep


def _is_reference(item: Fields) -> bool:
    """Whether `item` is a reference. Some clients leave the type out, as OpenAI's types allow."""
    kind = item.get("type")
    return kind == REFERENCE or (kind is None and "id" in item and item.keys() <= {"id", "type"})


def _is_looked_up(item: Fields) -> bool:
    """Whether `item` is a reference, or reasoning of which only the store may have all: the Agents SDKs send it back
    whole, and without asking for its ``encrypted_content``."""
    bare = item.get("type") == "reasoning" and isinstance(item.get("id"), str) and not item.get("encrypted_content")
    return bare or _is_reference(item)


def _reference(item: Fields, place: int) -> str:
    return str(required(item, "id", str, f"input[{place}]."))


def _resolved(items: list[Fields], known: Mapping[int, bytes]) -> list[Fields]:
    """`items` with each reference replaced by its item."""
    return [decode_leniently(known[n]) if n in known else item for n, item in enumerate(items)]


def _kept(form: NativeForm) -> tuple[bytes, ...]:
    """The input items as they are stored with the answer."""
    if not form.asked.stores:
        return ()
    try:
        write, known = form.asked.encode_whole if form.is_long else encode, form.known
        return (*form.history, *(known.get(n) or write(item) for n, item in enumerate(form.items())))
    except RecursionError:
        raise _too_deep() from None


def _call_of(form: NativeForm, client: Client) -> Call:
    """The call in the client's own format if a provider may accept that, else a chat."""
    if form.is_long:
        form.shell.repeat(form.asked.encode_whole)
    if Endpoint.RESPONSES.path not in client.dialects:
        return _translated(form)
    summary = form.asked.summary
    if form.history and any(b'"input_image"' in item for item in form.history):
        summary = evolve(summary, needs=summary.needs | {VISION})
    call = Call(Endpoint.RESPONSES, summary, form.body, form.request_id, native=form)
    if form.is_fixed:
        call.response_fields = form.response_fields()
    return call


def _translated(form: NativeForm) -> Call:
    try:
        add_chat(form.asked, _offering(form))
        conversation = _conversation(form.asked, form.history, form.items())
        return _call(form.asked, conversation, form.request_id, large=form.is_long)
    except RecursionError:
        raise _too_deep() from None


def _offering(form: NativeForm) -> Iterator[tuple[Fields, str]]:
    """The items of the conversation that offer tools, each with its path."""
    read = form.asked.reader(form.history)
    for data in form.history:
        if holds(data, _OFFERING):
            item = read(data)
            if item.get("type") in OFFERING:
                yield item, "previous_response_id"
    for n, item in enumerate(form.items()):
        if item.get("type") in OFFERING:
            yield item, f"{INPUT}[{n}]"


def _too_deep() -> InvalidRequest:
    return InvalidRequest("the body is nested too deeply")


def _call(asked: Asked, conversation: Conversation, request_id: str, *, large: bool) -> Call:
    """The call for any provider, and for one to which some of the items belong.

    `large`: encodes it in several short calls.
    """
    chat, encode_large = asked.chat, asked.encode_whole
    notes = tuple(f"not sent on: tool {kind}" for kind in dict.fromkeys(asked.tools.dropped))
    notes += tuple(f"not sent on: item {kind[:64]}" for kind in dict.fromkeys(conversation.left_out))

    def at(provider: str) -> Call:
        messages = conversation.messages(provider)
        if not messages:
            raise InvalidRequest("'input' is empty: there is nothing to answer", param="input")
        body, summary = made_request(
            {**chat, "messages": messages}, ("messages", list), large=large, encode_large=encode_large
        )
        call = Call(Endpoint.CHAT, summary, body, request_id, relays=False, notes=notes, is_large=is_large(body))
        call.translate_error = paths.translate_error
        return call

    paths = CallerPaths(INPUT, conversation.origins(), CALLED_HERE)
    call = at("")
    return evolve(call, own=at) if conversation.carries else call


def _conversation(asked: Asked, history: Sequence[bytes], items: list[Fields]) -> Conversation:
    """This request's instructions, then the history, then the new items."""
    conversation = Conversation(asked.tools.names)
    if instructions := asked.fields().get("instructions"):
        conversation.say("system", instructions, "instructions")
    read = asked.reader(history)
    for data in history:
        conversation.add(read(data), "previous_response_id")
    for n, item in enumerate(items):
        conversation.add(item, f"input[{n}]")
    return conversation
