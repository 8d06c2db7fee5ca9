"""Translates the content of a message or tool result into a chat's: a plain string if it is only text."""

from __future__ import annotations

from typing import Any, Final

from manallm_proxy.contract.errors import Untranslatable
from manallm_proxy.openai.base64_text import is_base64
from manallm_proxy.openai.joined import joined_lines
from manallm_proxy.openai.request_fields import Fields, all_of, image_url, optional, required, wrong

_TEXTS: Final = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""By type of text part: the member that holds the text."""
_DETAILS: Final = {"original": "high"}
"""Of an image, what few servers of chats know -> the nearest that all know. Codex keeps its pictures in the history: a
refusal would come back with each turn."""
Content = str | list[Fields]


def read_content(content: object, path: str) -> Content:
    """A string, or a chat's parts. Raises InvalidRequest with the path of a part that is invalid or unsupported."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(path, "a string or an array of parts")
    rows = all_of(dict, content, path)
    kinds = (row.get("type") for row in rows)
    if all(isinstance(kind, str) and kind in _TEXTS for kind in kinds):  # no parts are made: short texts take less
        return joined_lines(required(row, _TEXTS[row["type"]], str, f"{path}[{n}].") for n, row in enumerate(rows))
    return [_part(part, f"{path}[{n}]") for n, part in enumerate(rows)]


def text_and_rest(content: Content) -> tuple[str, list[Fields]]:
    """The text of `content`, and its parts that are not text."""
    if isinstance(content, str):
        return content, []
    texts = [part["text"] for part in content if part["type"] == "text"]
    return joined_lines(texts), [part for part in content if part["type"] != "text"]


def _part(part: Fields, path: str) -> Fields:
    kind = required(part, "type", str, path + ".")
    if kind in _TEXTS:
        return {"type": "text", "text": required(part, _TEXTS[kind], str, path + ".")}
    if kind in ("input_image", "image_url"):  # some clients send a chat's parts
        return _image(part, path)
    if kind == "input_file":
        return _file(part, path)
    if kind == "file":
        return _file(required(part, kind, dict, path + "."), f"{path}.{kind}")
    if kind == "input_audio":
        return {"type": kind, kind: required(part, kind, dict, path + ".")}
    known = "input_text, input_image, input_file, input_audio, output_text and refusal"
    raise Untranslatable(f"{path} is of type '{kind[:64]}', and this door reads {known}", param=path)


def _image(part: Fields, path: str) -> Fields:
    if part.get("image_url") is None and part.get("file_id") is not None:
        raise _uploaded(path, "image_url")
    url, at = image_url(part, path + ".")
    if not url[:8].lower().startswith(("http://", "https://")):
        _check_data(url, at)
    image: dict[str, Any] = {"url": url}
    holder = part["image_url"]
    inner = optional(holder, "detail", str, path + ".image_url.") if isinstance(holder, dict) else None
    if detail := optional(part, "detail", str, path + ".") or inner:
        image["detail"] = _DETAILS.get(detail, detail)
    return {"type": "image_url", "image_url": image}


def _file(part: Fields, path: str) -> Fields:
    if part.get("file_data") is None:
        if part.get("file_url") is not None:
            raise Untranslatable(f"{path}.file_url: URLs are not fetched, send file_data", param=path + ".file_url")
        if part.get("file_id") is not None:
            raise _uploaded(path, "file_data")
    data = required(part, "file_data", str, path + ".")
    if data.startswith("data:"):
        _check_data(data, path + ".file_data")
    file: Fields = {"file_data": data}
    if (name := optional(part, "filename", str, path + ".")) is not None:
        file["filename"] = name
    return {"type": "file", "file": file}


def _check_data(uri: str, path: str) -> None:
    """Checked here, since a provider's refusal would name the path in the translated request."""
    comma = uri.find(",")  # what follows may be megabytes, and is not copied
    head = uri[: max(comma, 0)].lower()
    if not (head.startswith("data:") and head.endswith(";base64") and is_base64(uri, comma + 1)):
        raise wrong(path, "a base64 data URI")


def _uploaded(path: str, instead: str) -> Untranslatable:
    return Untranslatable(
        f"{path}.file_id: uploaded files are not served here, send {instead} as a base64 data URI",
        param=path + ".file_id",
    )
