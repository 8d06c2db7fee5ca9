"""``POST /v1/messages``, Anthropic's API."""

from __future__ import annotations

from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import Untranslatable
from manallm_proxy.contract.provider import Call, Endpoint, Native
from manallm_proxy.doors.messages.blocks import Blocks
from manallm_proxy.doors.messages.errors import error_body
from manallm_proxy.doors.messages.native import native_call
from manallm_proxy.doors.messages.reply import MessagesReply
from manallm_proxy.doors.messages.request import Thinking, read_request
from manallm_proxy.openai.request import read_summary


class MessagesDoor:
    """See `door.Door`."""

    name = "messages"
    error_body = staticmethod(error_body)

    def read(self, body: bytes, client: Client) -> tuple[Call, MessagesReply]:
        """The call is a chat completion, for every kind of provider, and the message itself for one that takes it."""

        def write(_provider: str) -> Call:
            call = native_call(body, client.headers, client.request_id, Endpoint.MESSAGES)
            call.cuts_length = True
            return call

        thinking = Thinking()
        try:
            asked = read_request(body)
        except Untranslatable as refusal:
            call = write("")
            call.refusal = refusal
        else:
            summary, thinking = read_summary(asked.chat, ("messages", list)), asked.thinking
            call = Call(Endpoint.CHAT, summary, asked.chat, client.request_id, relays=False, cuts_length=True)
            call.retell = asked.paths.retell
        call.native = Native(Endpoint.MESSAGES, write)
        return call, MessagesReply(client.request_id, Blocks(thinking))

    def headers(self, request_id: str) -> dict[str, str]:
        """``request-id``, which the SDKs show in their errors."""
        return {"request-id": request_id}
