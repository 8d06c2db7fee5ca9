"""OpenAI's Responses: events to one object, and one object to events, in the order that `reply` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from manallm_proxy.contract.answers import Usage
from manallm_proxy.openai import sse
from manallm_proxy.openai.json_object import decode, encode


class _Ended(msgspec.Struct):
    """A response of which only the id, for look-ups, and the status are decoded."""

    id: str
    status: str


_Event = tuple[str, dict[str, Any]]
_ENDS: Final = ("response.completed", "response.incomplete")
_EMPTY: Final[dict[str, Any]] = {
    "content": [],
    "summary": [],
    "arguments": "",
    "input": "",
    "result": None,
    "encrypted_content": None,
}
"""Members of an item that are empty in its first event."""


def is_success(whole: bytes) -> bool:
    """Whether the response ended as completed or incomplete, not as failed."""
    return decode(whole, type=_Ended).status != "failed"


def to_stream(whole: bytes, with_usage: bool) -> bytes:
    """One delta per item or part. The usage is always included, as in a live stream."""
    frames = [
        b"event: %b\ndata: %b\n\n" % (kind.encode(), encode({"type": kind, "sequence_number": n, **fields}))
        for n, (kind, fields) in enumerate(_events(decode(whole)))
    ]
    return b"".join(frames)


def _events(response: dict[str, Any]) -> Iterator[_Event]:
    begun: dict[str, Any] = {
        "status": "in_progress",
        "output": [],
        "usage": None,
        "completed_at": None,
        "incomplete_details": None,
    }
    for kind in ("response.created", "response.in_progress"):
        yield kind, {"response": {**response, **begun}}
    for index, item in enumerate(response["output"]):
        empty = {key: value for key, value in _EMPTY.items() if key in item}
        if item["type"] == "tool_search_call":  # whose arguments are an object
            empty["arguments"] = {}
        yield (
            "response.output_item.added",
            {"output_index": index, "item": {**item, **empty, "status": "in_progress"}},
        )
        at = {"item_id": item["id"], "output_index": index}
        yield from _inside(item, at)
        yield "response.output_item.done", {"output_index": index, "item": item}
    yield f"response.{response['status']}", {"response": response}


def _inside(item: dict[str, Any], at: dict[str, Any]) -> Iterator[_Event]:
    match item["type"]:
        case "message":
            for n, part in enumerate(item.get("content") or ()):
                yield from _part(part, {**at, "content_index": n})
        case "reasoning":
            for n, part in enumerate(item.get("summary") or ()):
                here = {**at, "summary_index": n}
                yield "response.reasoning_summary_part.added", {**here, "part": {**part, "text": ""}}
                yield "response.reasoning_summary_text.delta", {**here, "delta": part["text"]}
                yield "response.reasoning_summary_text.done", {**here, "text": part["text"]}
                yield "response.reasoning_summary_part.done", {**here, "part": part}
        case "function_call":
            yield "response.function_call_arguments.delta", {**at, "delta": item["arguments"]}
            done = {**at, "name": item["name"], "arguments": item["arguments"]}
            yield "response.function_call_arguments.done", done
        case "custom_tool_call":
            if item["input"]:
                yield "response.custom_tool_call_input.delta", {**at, "delta": item["input"]}
            yield "response.custom_tool_call_input.done", {**at, "input": item["input"]}


def _part(part: dict[str, Any], here: dict[str, Any]) -> Iterator[_Event]:
    if part["type"] == "refusal":
        yield "response.content_part.added", {**here, "part": {**part, "refusal": ""}}
        yield "response.refusal.delta", {**here, "delta": part["refusal"]}
        yield "response.refusal.done", {**here, "refusal": part["refusal"]}
    elif part["type"] == "output_text":
        logprobs = part.get("logprobs") or []
        yield "response.content_part.added", {**here, "part": {**part, "text": "", "annotations": [], "logprobs": []}}
        if part["text"]:
            yield "response.output_text.delta", {**here, "delta": part["text"], "logprobs": logprobs}
        for n, annotation in enumerate(part.get("annotations") or ()):
            added = {**here, "annotation_index": n, "annotation": annotation}
            yield "response.output_text.annotation.added", added
        yield "response.output_text.done", {**here, "text": part["text"], "logprobs": logprobs}
    else:
        yield "response.content_part.added", {**here, "part": part}
    yield "response.content_part.done", {**here, "part": part}


def to_whole(stream: bytes, usage: Usage | None) -> bytes | None:
    """The response of the last event; None if that is not the end of a successful one."""
    frames = [frame for frame in sse.whole_frames(stream) if frame.data is not None]
    payload = decode(frames[-1].data or b"{}") if frames else {}
    if payload.get("type") not in _ENDS:
        return None
    whole = encode(payload["response"])
    return whole if is_success(whole) else None
