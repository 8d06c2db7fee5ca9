"""Converts choices in OpenAI's format, of a chunk or of a whole answer, to deltas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from manallm_proxy.contract.answers import Delta, ToolCall, new_call_id
from manallm_proxy.openai.joined import joined_text
from manallm_proxy.openai.json_object import json_text
from manallm_proxy.openai.reasoning_details import details_in
from manallm_proxy.openai.usage import count
from manallm_proxy.providers.openai.chunks import index_of


def deltas_of(choices: Iterable[dict[str, Any]]) -> list[Delta]:
    """The choices of one chunk, each as one step. Parts of tool calls keep the server's id, if any: see `CallParts`."""
    return [_delta(choice, choice.get("delta")) for choice in choices]


def rows_of_chunk(choices: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """How many parts of tool calls and how many images one chunk's choices have in all."""
    deltas = [delta for choice in choices if isinstance(delta := choice.get("delta"), dict)]
    calls, images = [[delta.get(key) for delta in deltas] for key in ("tool_calls", "images")]
    return sum(len(rows) for rows in calls if isinstance(rows, list)), sum(
        len(rows) for rows in images if isinstance(rows, list)
    )


def whole_deltas(choices: Iterable[dict[str, Any]]) -> list[Delta]:
    """The choices of a complete answer, each as a single step, numbered in order."""
    rows = [_delta(choice, choice.get("message"), whole=True) for choice in choices]
    return [row if row.index == n else _at(row, n) for n, row in enumerate(rows)]


def _at(delta: Delta, index: int) -> Delta:
    return Delta(
        delta.content,
        delta.reasoning,
        delta.tool_calls,
        delta.finish,
        index,
        delta.logprobs,
        delta.images,
        delta.refusal,
        delta.reasoning_key,
        delta.details,
        delta.citations,
        delta.stopped_by,
    )


def _delta(choice: dict[str, Any], said: object, *, whole: bool = False) -> Delta:
    said = said if isinstance(said, dict) else {}
    calls = said.get("tool_calls")
    calls = calls if isinstance(calls, list) else []
    rows = [call for call in calls if isinstance(call, dict) and isinstance(call.get("function", {}), dict)]
    finish = choice.get("finish_reason")
    key = "reasoning_content" if _words(said.get("reasoning_content")) else "reasoning"
    reasoning = _words(said.get(key))
    content = said.get("content")
    if isinstance(content, list) and not reasoning:
        reasoning, key = _thoughts(content), ""
    return Delta(
        content=_words(content) or _words(choice.get("text")),
        reasoning=reasoning,
        reasoning_key=key if reasoning else "reasoning_content",
        tool_calls=tuple(_tool_call(row, n, whole=whole) for n, row in enumerate(rows)),
        finish=str(finish) if finish else "stop" if whole else None,
        index=index_of(choice),
        logprobs=choice.get("logprobs"),
        images=tuple(_images(said.get("images"))),
        refusal=_words(said.get("refusal")),
        details=details_in(said),
        citations=tuple(_citations(said.get("annotations"))),
        stopped_by=_words(choice.get("stop_reason")) or _words(choice.get("matched_stop")),  # vLLM, SGLang
    )


def _tool_call(row: dict[str, Any], place: int, *, whole: bool) -> ToolCall:
    function = row.get("function", {})
    index = row.get("index")
    id_ = row.get("id")
    extra = row.get("extra_content")
    return ToolCall(
        name=_words(function.get("name")),
        arguments=_arguments(function.get("arguments")),
        id=id_ if isinstance(id_, str) and id_ else new_call_id() if whole else "",
        index=index if isinstance(index, int) and not whole else place,
        extra={"extra_content": extra} if isinstance(extra, dict) else {},
    )


def _arguments(value: object) -> str:
    """The arguments as JSON text. Some servers send the object itself."""
    return json_text(value) if isinstance(value, dict) else _words(value)


def _words(content: object) -> str:
    """The text of a string, or of a list of blocks (Mistral)."""
    if isinstance(content, list):
        return joined_text([_words(block.get("text")) for block in content if isinstance(block, dict)])
    return content if isinstance(content, str) else ""


def _thoughts(content: list[Any]) -> str:
    """What blocks of a content say that are thoughts (Mistral's reasoning models)."""
    return "".join(_words(block.get("thinking")) for block in content if isinstance(block, dict))


def _citations(annotations: object) -> list[dict[str, Any]]:
    """Those of models that search the web. A place in the text that is not known is its beginning."""
    rows = annotations if isinstance(annotations, list) else []
    cited = [row.get("url_citation") for row in rows if isinstance(row, dict)]
    return [_citation(inner) for inner in cited if isinstance(inner, dict) and _words(inner.get("url"))]


def _citation(inner: dict[str, Any]) -> dict[str, Any]:
    at = {key: count(inner.get(key)) for key in ("start_index", "end_index")}
    return {"type": "url_citation", **at, "url": inner["url"], "title": _words(inner.get("title"))}


def _images(images: object) -> list[str]:
    """The URLs in OpenRouter's ``images``; other servers leave out one level of objects, or both."""
    rows = images if isinstance(images, list) else []
    holders = [row.get("image_url", row) if isinstance(row, dict) else row for row in rows]
    urls = [holder.get("url") if isinstance(holder, dict) else holder for holder in holders]
    return [url for url in urls if isinstance(url, str) and url]
