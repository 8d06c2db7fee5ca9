"""What an assistant's message in a history may hold beside text and tool calls, for dialects that translate it.

And how doors whose API has no place for a generated image show it: as a link in the text.
"""

from __future__ import annotations

from typing import Any, Final

from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.openai.joined import joined_text
from manallm_proxy.openai.request_fields import Fields, image_url, optional, typed

_LINK: Final = "![image]("
_DATA: Final = f"{_LINK}data:image/"
_HEAD: Final = 64
"""Max characters of a data URI before its data."""


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


def image_link(url: str) -> str:
    """An image as a link in Markdown."""
    return joined_text([_LINK, url, ")"])


def without_image_links(text: str) -> tuple[str, list[str]]:
    """`text` without the links that `image_link` made of data URIs, and these: a model that was sent them back as text
    would read a megabyte of base64 as half a million tokens."""
    kept: list[str] = []
    urls: list[str] = []
    at = 0
    while (start := text.find(_DATA, at)) >= 0 and (end := text.find(")", start)) >= 0:
        url = start + len(_LINK)
        if text[url : url + _HEAD].partition(",")[0].endswith(";base64"):
            kept.append(text[at:start])
            urls.append(text[url:end])
        else:
            kept.append(text[at : end + 1])
        at = end + 1
    return (joined_text([*kept, text[at:]]), urls) if urls else (text, [])


def image_rows(urls: list[str]) -> list[Fields]:
    """Images as an assistant's message has them."""
    return [{"type": "image_url", "image_url": {"url": url}} for url in urls]
