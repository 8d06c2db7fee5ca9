"""``POST /v1/messages``, Anthropic's API."""

from __future__ import annotations

from manallm_proxy.contract.door import Client
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.doors.messages.blocks import Blocks
from manallm_proxy.doors.messages.errors import error_body
from manallm_proxy.doors.messages.reply import MessagesReply
from manallm_proxy.doors.messages.request import read_request
from manallm_proxy.openai.request import read_summary


class MessagesDoor:
    """See `door.Door`."""

    name = "messages"
    error_body = staticmethod(error_body)

    def read(self, body: bytes, client: Client) -> tuple[Call, MessagesReply]:
        """The call is a chat completion, for every kind of provider."""
        asked = read_request(body)
        summary = read_summary(asked.chat, ("messages", list))
        call = Call(Endpoint.CHAT, summary, asked.chat, client.request_id, relays=False)
        call.retell = asked.paths.retell
        return call, MessagesReply(client.request_id, Blocks(asked.thinking))

    def headers(self, request_id: str) -> dict[str, str]:
        """``request-id``, which the SDKs show in their errors."""
        return {"request-id": request_id}
