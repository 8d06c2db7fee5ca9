"""``POST /v1/messages``, Anthropic's API."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from manallm_proxy.contract.door import Client
from manallm_proxy.contract.provider import Call, Endpoint, RequestSummary
from manallm_proxy.doors.messages.blocks import Blocks
from manallm_proxy.doors.messages.errors import error_body
from manallm_proxy.doors.messages.native import NativeForm, read_native
from manallm_proxy.doors.messages.reply import MessagesReply
from manallm_proxy.doors.messages.request import Asked, read_request
from manallm_proxy.openai.large import is_large


class MessagesDoor:
    """See `door.Door`."""

    name = "messages"
    scans = False
    error_body = staticmethod(error_body)

    def read(self, body: bytes, client: Client) -> tuple[Call, MessagesReply]:
        """The call is a chat completion, for every kind of provider; or the message itself, where one may take it."""
        blocks = Blocks(limit=client.bounds.items)
        if Endpoint.MESSAGES.path not in client.dialects:
            return _translated(body, client.request_id, blocks), MessagesReply(client.request_id, blocks)
        call = read_native(body, client.headers, client.request_id, Endpoint.MESSAGES)
        call.cuts_length = True
        translate = partial(_translated, body, client.request_id, blocks, is_checked=True)
        call.native = NativeForm(call.summary, body, client.request_id, call.headers, translate)
        return call, MessagesReply(client.request_id, blocks)

    def headers(self, request_id: str) -> dict[str, str]:
        """``request-id``, which the SDKs show in their errors."""
        return {"request-id": request_id}


def _translated(body: bytes, request_id: str, blocks: Blocks, *, is_checked: bool = False) -> Call:
    """The call as a chat. Sets in `blocks`, which will become the answer, what the request says of it."""
    asked = read_request(body, is_checked=is_checked)
    blocks.thinking, blocks.stops, blocks.names = asked.thinking, asked.stops, asked.names
    call = _chat(asked, request_id, asked.chat, asked.summary)
    if asked.own is not None:
        call.own = partial(_own, asked, request_id, asked.own)
    return call


def _own(asked: Asked, request_id: str, own: Callable[[str], tuple[bytes, RequestSummary]], provider: str) -> Call:
    """The call with what the provider of that name expects back."""
    return _chat(asked, request_id, *own(provider))


def _chat(asked: Asked, request_id: str, chat: bytes, summary: RequestSummary) -> Call:
    call = Call(
        Endpoint.CHAT,
        summary,
        chat,
        request_id,
        relays=False,
        cuts_length=True,
        notes=asked.notes,
        is_large=is_large(chat),
    )
    call.translate_error = asked.paths.translate_error
    return call
