"""Translates content blocks of Anthropic's messages into OpenAI's parts: text, images, documents, search results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from manallm_proxy.contract.errors import Untranslatable
from manallm_proxy.openai.base64_text import is_base64
from manallm_proxy.openai.joined import joined_lines, joined_text
from manallm_proxy.openai.request_fields import Fields, all_of, optional, required, wrong

TEXT, IMAGE, DOCUMENT, SEARCH_RESULT = "text", "image", "document", "search_result"
READABLE: Final = (TEXT, IMAGE, DOCUMENT, SEARCH_RESULT)
_NAME_LIMIT: Final = 64
"""Max characters of a client's text that an error message quotes."""


def blocks_of(content: object, path: str) -> Iterator[tuple[Fields, str, str]]:
    """(block, type, path) of each block. A string is one text block."""
    if isinstance(content, str):
        yield {"type": TEXT, "text": content}, TEXT, path
        return
    if not isinstance(content, list):
        raise wrong(path, "a string or an array of blocks")
    for n, block in enumerate(all_of(dict, content, path)):
        yield block, required(block, "type", str, f"{path}[{n}]."), f"{path}[{n}]"


def only_text(content: object, path: str) -> str | None:
    """The text of blocks that are all texts, each on a line: no parts are made, since short texts take less."""
    if not (isinstance(content, list) and content):
        return None
    if not all(isinstance(block, dict) and block.get("type") == TEXT for block in content):
        return None
    return joined_lines(required(block, "text", str, f"{path}[{n}].") for n, block in enumerate(content))


def unknown_block(kind: str, path: str, known: tuple[str, ...]) -> Untranslatable:
    """The error for a block that is not allowed at `path`, or not supported at all."""
    listed = ", ".join(f"'{each}'" for each in known)
    return Untranslatable(f"'{path}' is of type '{cut(kind)}'; served here: {listed}", param=path)


def cut(word: str) -> str:
    """A client's text, truncated for an error message."""
    return word[:_NAME_LIMIT]


def parts_of(block: Fields, kind: str, path: str, known: tuple[str, ...] = READABLE) -> list[Fields]:
    """The parts that one block becomes. Raises InvalidRequest unless its `kind` is one of `known`."""
    if kind not in known:
        raise unknown_block(kind, path, known)
    match kind:
        case "image":
            return [_image(block, path + ".source")]
        case "document":
            return _document(block, path)
        case "search_result":
            return [_search_result(block, path)]
    return [text_part(required(block, "text", str, path + "."))]


def text_part(text: str) -> Fields:
    """A text part."""
    return {"type": "text", "text": text}


def text_of(content: object, path: str) -> str:
    """Content that can only be text, each block on a line. Raises InvalidRequest for other blocks."""
    if (text := only_text(content, path)) is not None:
        return text
    blocks = blocks_of(content, path)
    parts = [part for block, kind, at in blocks for part in parts_of(block, kind, at, (TEXT,))]
    return joined_lines(part["text"] for part in parts)


def content_of(parts: list[Fields]) -> Any:
    """Parts as a message's ``content``: if all are text, one string, which every server accepts."""
    if all(part["type"] == "text" for part in parts):
        return joined_lines(part["text"] for part in parts)
    return parts


def _source(holder: Fields, path: str) -> tuple[Fields, str]:
    """The ``source`` member, at `path`, of an image or document block, and its type."""
    source: Fields = required(holder, "source", dict, path.removesuffix("source"))
    kind = required(source, "type", str, path + ".")
    if kind == "file":
        raise Untranslatable(f"'{path}' names an uploaded file, and none are kept here: send its data", param=path)
    return source, kind


def _data_uri(source: Fields, path: str) -> str:
    media = required(source, "media_type", str, path + ".")
    data = required(source, "data", str, path + ".")
    if "/" not in media:
        raise wrong(path + ".media_type", "a media type such as image/png")
    if not is_base64(data):
        raise wrong(path + ".data", "base64 data")
    return joined_text([f"data:{media};base64,", data])


def _image(block: Fields, path: str) -> Fields:
    """An image part. A URL is forwarded; a provider that fetches no URLs refuses it."""
    source, kind = _source(block, path)
    match kind:
        case "base64":
            url = _data_uri(source, path)
        case "url":
            url = required(source, "url", str, path + ".")
        case _:
            raise wrong(path + ".type", "'base64' or 'url'")
    return {"type": "image_url", "image_url": {"url": url}}


def _document(block: Fields, path: str) -> list[Fields]:
    title = optional(block, "title", str, path + ".")
    context = optional(block, "context", str, path + ".")
    about = [text_part(context)] if context else []
    head = [text_part(title), *about] if title else about
    path += ".source"
    source, kind = _source(block, path)
    match kind:
        case "base64":
            file = {"filename": title or "document.pdf", "file_data": _data_uri(source, path)}
            return [*about, {"type": "file", "file": file}]
        case "text":
            return [*head, text_part(required(source, "data", str, path + "."))]
        case "content":
            inner = blocks_of(source.get("content"), path + ".content")
            return [*head, *(part for each, name, at in inner for part in parts_of(each, name, at, (TEXT, IMAGE)))]
        case "url":
            raise Untranslatable(f"'{path}' is a URL, and none are fetched here: send the document's data", param=path)
    raise wrong(path + ".type", "'base64', 'text' or 'content'")


def _search_result(block: Fields, path: str) -> Fields:
    """One text part: title, source and texts, each on a line."""
    path += "."
    title, source = required(block, "title", str, path), required(block, "source", str, path)
    return text_part(joined_lines((title, source, text_of(block.get("content"), path + "content"))))
