"""Anthropic's messages: events to one object, and one object to events."""

from __future__ import annotations

from typing import Any, Final

from manallm_proxy.contract.answers import Usage
from manallm_proxy.doors.messages.block import Block, Kind
from manallm_proxy.doors.messages.reply import event, usage_to_json
from manallm_proxy.openai import sse
from manallm_proxy.openai.json_object import decode, encode

_PIECES: Final = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
"""By type of delta: its member that continues the block's text."""


def to_stream(whole: bytes, with_usage: bool) -> bytes:
    """One delta per block. The usage is always included, as in a live stream."""
    message = decode(whole)
    begun = {**message, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage_to_json(Usage())}
    out = [event({"type": "message_start", "message": begun})]
    for index, block in enumerate(message["content"]):
        empty, deltas = _opened(block)
        out.append(event({"type": "content_block_start", "index": index, "content_block": empty}))
        out += [event({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas]
        out.append(event({"type": "content_block_stop", "index": index}))
    ending = {"stop_reason": message.get("stop_reason"), "stop_sequence": message.get("stop_sequence")}
    out.append(event({"type": "message_delta", "delta": ending, "usage": message["usage"]}))
    return b"".join((*out, event({"type": "message_stop"})))


def _opened(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as in its start event, and its deltas."""
    match block["type"]:
        case "text":
            return {**block, "text": ""}, [{"type": "text_delta", "text": block["text"]}]
        case "thinking":
            deltas = [{"type": "thinking_delta", "thinking": block["thinking"]}] if block["thinking"] else []
            if block.get("signature"):
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            return {**block, "thinking": "", "signature": ""}, deltas
        case "tool_use":
            text = encode(block["input"]).decode()
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": text}]
    return block, []


def to_whole(stream: bytes, usage: Usage | None) -> bytes | None:
    """None if the stream has no end."""
    message: dict[str, Any] = {}
    blocks: dict[int, Block] = {}
    for frame in sse.whole_frames(stream):
        payload = decode(frame.data or b"{}")
        match payload.get("type"):
            case "message_start":
                message = payload["message"]
            case "content_block_start":
                begun = payload["content_block"]
                blocks[payload["index"]] = Block(Kind(begun["type"]), begun.get("id", ""), begun.get("name", ""))
            case "content_block_delta":
                delta, block = payload["delta"], blocks[payload["index"]]
                if delta["type"] == "signature_delta":
                    block.signature = delta["signature"]
                else:
                    block.pieces.append(delta[_PIECES[delta["type"]]])
            case "message_delta":
                counted = {
                    **message["usage"],
                    **payload["usage"],
                }  # Anthropic's server counts the prompt at the start
                message |= {**payload["delta"], "usage": counted}
            case "message_stop":
                content = [block.whole() for _, block in sorted(blocks.items())]
                return encode({**message, "content": content})
    return None
