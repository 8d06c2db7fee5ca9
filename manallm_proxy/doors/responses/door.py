"""``POST /v1/responses``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from attrs import define, evolve

from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest, Untranslatable
from manallm_proxy.contract.provider import Call, Endpoint, Native
from manallm_proxy.doors.openai_reply import no_headers
from manallm_proxy.doors.responses.answer import AnswerItems
from manallm_proxy.doors.responses.items import INPUT, REFERENCE, Conversation, input_items
from manallm_proxy.doors.responses.native import NativeForm
from manallm_proxy.doors.responses.not_found import ItemNotFound, PreviousResponseNotFound
from manallm_proxy.doors.responses.reply import Keep, ResponsesReply
from manallm_proxy.doors.responses.request import CALLED_HERE, SEALED, Asked, add_chat, read_request
from manallm_proxy.doors.responses.shell import Shell
from manallm_proxy.doors.responses.store import Owner, Store, Stored
from manallm_proxy.openai.caller_paths import CallerPaths
from manallm_proxy.openai.errors import error_body
from manallm_proxy.openai.json_object import decode, encode
from manallm_proxy.openai.large import aside, is_large
from manallm_proxy.openai.request import read_summary
from manallm_proxy.openai.request_fields import Fields, required


@define(eq=False)
class ResponsesDoor:
    """See `door.Door`. Every call has the whole conversation, since providers keep nothing of earlier requests."""

    store: Store
    name: str = "responses"
    scans: bool = False
    error_body = staticmethod(error_body)
    headers = staticmethod(no_headers)

    async def read(self, body: bytes, client: Client) -> tuple[Call, ResponsesReply]:
        """Raises InvalidRequest, PreviousResponseNotFound and ItemNotFound among others."""
        large = is_large(body)
        asked = await aside(large, read_request, body)
        history = await self._history(asked.previous, client.key)
        given = input_items(asked.fields["input"])
        items = await self._resolved(given, client.key)
        repeated = {key: value for key, value in asked.fields.items() if key != "input"}
        shell = Shell(self.store.new_id("resp"), repeated, asked.summary.model)
        translate = partial(_translated, asked, history, items, client.request_id)
        if Endpoint.RESPONSES.path in client.dialects:
            form = NativeForm(body, asked, history, items, items is not given, shell, client.request_id)
            native = Native(Endpoint.RESPONSES, form.write, partial(_or_refused, form, translate))
            call = Call(Endpoint.RESPONSES, asked.summary, body, client.request_id, native=native)
        else:
            call = await aside(large, translate)
        kept = await aside(large, _kept, history, items) if asked.stores else ()
        answer = AnswerItems(self.store.new_id, asked.tools.names, SEALED in asked.include)
        keep = self._keeper(shell.id, client.key, kept) if asked.stores else None
        knows = partial(self._knows, client.key) if asked.stores else None
        return call, ResponsesReply(shell, answer, keep, knows)

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

    async def _resolved(self, items: list[Fields], owner: Owner) -> list[Fields]:
        """`items` with each reference replaced by its item. Raises ItemNotFound."""
        wanted = {n: _reference(item, n) for n, item in enumerate(items) if _is_reference(item)}
        if not wanted:
            return items
        found = await self.store.items(owner, wanted.values())
        for n, id_ in wanted.items():
            if id_ not in found:
                raise ItemNotFound(id_, f"input[{n}]")
        return [decode(found[wanted[n]]) if n in wanted else item for n, item in enumerate(items)]

    async def _knows(self, owner: Owner, id_: str) -> bool:
        return await self.store.response(owner, id_) is not None

    def _keeper(self, id_: str, owner: Owner, input_: tuple[bytes, ...]) -> Keep:
        loop, here = asyncio.get_running_loop(), threading.get_ident()

        def keep(response: dict[str, Any], items: list[Fields]) -> None:
            output = tuple(map(encode, items))
            ids = tuple(str(item.get("id") or f"{id_}/{n}") for n, item in enumerate(items))
            stored = Stored(id_, encode(response), input_, output, ids)
            if threading.get_ident() == here:
                self.store.keep(owner, stored)
            else:  # a large answer is written in a thread, and the store belongs to the loop's
                loop.call_soon_threadsafe(self.store.keep, owner, stored)

        return keep


def _is_reference(item: Fields) -> bool:
    """Whether `item` is a reference. Some clients leave the type out, as OpenAI's types allow."""
    return item.get("type") == REFERENCE or (set(item) <= {"id", "type"} and item.get("type") is None and "id" in item)


def _reference(item: Fields, place: int) -> str:
    return str(required(item, "id", str, f"input[{place}]."))


def _kept(history: Sequence[bytes], items: list[Fields]) -> tuple[bytes, ...]:
    """What led to the answer, as it is kept with it."""
    try:
        return (*history, *map(encode, items))
    except RecursionError:
        raise _too_deep() from None


def _or_refused(form: NativeForm, translate: Callable[[], Call]) -> Call:
    """The translated call, or one that says why only a provider of this API can serve it."""
    try:
        return translate()
    except Untranslatable as refusal:
        return form.refused(refusal)


def _translated(asked: Asked, history: Sequence[bytes], items: list[Fields], request_id: str) -> Call:
    try:
        add_chat(asked)
        return _call(asked, _conversation(asked, history, items), request_id)
    except RecursionError:
        raise _too_deep() from None


def _too_deep() -> InvalidRequest:
    return InvalidRequest("the body is nested too deeply")


def _call(asked: Asked, conversation: Conversation, request_id: str) -> Call:
    """The call as every provider gets it, and as one that finds something of its own in it."""
    notes = tuple(f"not sent on: tool {kind}" for kind in dict.fromkeys(asked.tools.dropped))
    notes += tuple(f"not sent on: kept item {kind[:64]}" for kind in dict.fromkeys(conversation.left_out))

    def at(provider: str) -> Call:
        messages = conversation.messages(provider)
        if not messages:
            raise InvalidRequest("'input' is empty: there is nothing to answer", param="input")
        chat = encode({**asked.chat, "messages": messages})
        summary = read_summary(chat, ("messages", list))
        call = Call(Endpoint.CHAT, summary, chat, request_id, relays=False, notes=notes, is_large=is_large(chat))
        call.retell = paths.retell
        return call

    paths = CallerPaths(INPUT, conversation.origins(), CALLED_HERE)
    call = at("")
    return evolve(call, own=at) if conversation.carries else call


def _conversation(asked: Asked, history: Sequence[bytes], items: list[Fields]) -> Conversation:
    """This request's instructions, then the history, then the new items."""
    conversation = Conversation(asked.tools.names)
    if instructions := asked.fields.get("instructions"):
        conversation.say("system", instructions, "instructions")
    for data in history:
        conversation.add(decode(data), "previous_response_id")
    for n, item in enumerate(items):
        conversation.add(item, f"input[{n}]")
    return conversation
