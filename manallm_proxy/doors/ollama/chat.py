"""``POST /api/chat``."""

from __future__ import annotations

from typing import Any

from manallm_proxy.contract.answers import Answer, Delta
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.doors.ollama.errors import ollama_error_body
from manallm_proxy.doors.ollama.messages import Conversation
from manallm_proxy.doors.ollama.reply import ChatReply
from manallm_proxy.doors.ollama.request import door_call, read_object_texts
from manallm_proxy.doors.ollama.settings import CALLED_HERE, read_settings, tools_of
from manallm_proxy.doors.openai_reply import no_headers
from manallm_proxy.openai.caller_paths import CallerPaths
from manallm_proxy.openai.large import is_large
from manallm_proxy.openai.request_fields import Fields, optional
from manallm_proxy.openai.stand_ins import StandIns


class OllamaChatDoor:
    """See `door.Door`."""

    name = "api/chat"
    scans = False
    error_body = staticmethod(ollama_error_body)
    headers = staticmethod(no_headers)

    def read(self, body: bytes, client: Client) -> tuple[Call, ChatReply]:
        asked, texts = read_object_texts(body, "messages")
        model = optional(asked, "model", str) or ""
        messages = optional(asked, "messages", list) or []
        settings = read_settings(asked)
        fields = {"messages": Conversation().read(messages), **tools_of(asked), **settings.fields}
        call = door_call(
            Endpoint.CHAT,
            asked,
            fields,
            settings.ollama | _reasoning_for_ollama(fields, texts),
            client,
            large=is_large(body),
            encode_large=texts.encode_whole,
        )
        call.translate_error = CallerPaths("messages", Conversation.origins(messages), CALLED_HERE).translate_error
        if not messages:
            call.answer, call.summary.stream = load_answer(asked), False
        return call, ChatReply(model)


def load_answer(asked: Fields) -> Answer:
    """The answer to a request without a prompt, by which clients load or unload a model."""
    return Answer(choices=(Delta(finish="unload" if asked.get("keep_alive") in (0, "0", "0s") else "load"),))


def _reasoning_for_ollama(fields: dict[str, Any], texts: StandIns) -> Fields:
    """Removes earlier turns' reasoning from `fields`; returns the messages with it, if any, for Ollama's own providers:
    as JSON if some of their texts are in `texts` alone.

    Groq and Mistral refuse it.
    """
    messages = fields["messages"]
    if not any("reasoning_content" in message for message in messages):
        return {}
    fields["messages"] = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in messages]
    return {"messages": texts.encode_whole(messages) if texts.has_any else messages}
