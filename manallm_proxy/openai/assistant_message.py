"""What an assistant's message in a history may hold beside text and tool calls, for dialects that translate it."""

from __future__ import annotations

from typing import Any

from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.openai.request_fields import Fields, image_url, optional, typed


def assistant_content(message: Fields, path: str, reader: str) -> tuple[Any, str]:
    """The content of an assistant's message at `path`, and the content's own path. A refusal is what was said instead.

    Raises Unsupported if the turn consists of what only its first server can read: without it, the model would see a
    conversation that never was. `reader`: the provider API, for the message.
    """
    content = message.get("content")
    if content is None or content == "" or content == []:
        if refusal := optional(message, "refusal", str, path):
            return refusal, path + "refusal"
        for key, instead in (("audio", "its transcript as 'content'"), ("function_call", "'tool_calls'")):
            if message.get(key) is not None:
                raise Unsupported(f"{reader} cannot read '{path}{key}': send {instead}", param="messages")
    return content, path + "content"


def shown_images(message: Fields, path: str) -> list[tuple[str, str]]:
    """URL and path of each image that the model generated (OpenRouter's ``images``, which our own answers have too)."""
    images = enumerate(optional(message, "images", list, path) or [])
    return [_image(image, f"{path}images[{n}]") for n, image in images]


def _image(image: object, path: str) -> tuple[str, str]:
    if isinstance(image, str):
        return image, path
    return image_url(typed(dict, image, path), path + ".")
