"""Output items, built from deltas. Each yields the events that report its progress."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.doors.carried import KEPT, SHOWN, Carried, pack
from manallm_proxy.doors.responses.tool_names import Tool, arguments_to_input
from manallm_proxy.openai.call_arguments import Arguments
from manallm_proxy.openai.joined import joined_text, tail_of
from manallm_proxy.openai.json_object import DecodeErrors, decode_text
from manallm_proxy.openai.large import LARGE_PARTS, is_long
from manallm_proxy.openai.reasoning_details import ReasoningDetails

Event = tuple[str, dict[str, Any]]
"""Type, and the fields other than ``type`` and ``sequence_number``."""

IN_PROGRESS: Final = "in_progress"
COMPLETED: Final = "completed"
INCOMPLETE: Final = "incomplete"


@define(eq=False)
class Item:
    """One output item. ``index``: its position in ``output``."""

    id: str
    index: int
    status: str = IN_PROGRESS

    def view(self) -> dict[str, Any]:
        """The item in its current state, as clients see it."""
        raise NotImplementedError  # implemented by each type

    def stored(self) -> dict[str, Any]:
        """As `view`, with the data that this proxy needs in a later turn."""
        return self.view()

    def close(self, status: str) -> Iterator[Event]:
        """Ends the item; yields its last events."""
        self.status = status
        yield from self._last()
        yield "response.output_item.done", {"output_index": self.index, "item": self.view()}

    def open(self) -> Event:
        """The item's first event."""
        return "response.output_item.added", {"output_index": self.index, "item": self.view()}

    @property
    def is_long(self) -> bool:
        """Whether encoding it takes milliseconds."""
        return False

    def _last(self) -> Iterator[Event]:
        yield from ()

    def _at(self, **more: Any) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.index, **more}


@define
class Part:
    """One content part of a message: text or a refusal."""

    kind: str
    words: list[str] = field(factory=list, repr=False)
    logprobs: list[dict[str, Any]] = field(factory=list, repr=False)
    annotations: list[dict[str, Any]] = field(factory=list, repr=False)

    @property
    def text(self) -> str:
        """The whole text, joined once."""
        if len(self.words) > 1:
            self.words = [joined_text(self.words)]
        return self.words[0] if self.words else ""

    def view(self) -> dict[str, Any]:
        text = self.text
        if self.kind == "refusal":
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "text": text, "annotations": self.annotations, "logprobs": self.logprobs}


@define(eq=False)
class MessageItem(Item):
    """The model's text and refusals."""

    _parts: list[Part] = field(factory=list)

    def view(self) -> dict[str, Any]:
        content = [part.view() for part in self._parts]
        return {"id": self.id, "type": "message", "status": self.status, "role": "assistant", "content": content}

    @property
    def is_long(self) -> bool:
        return any(is_long(part.words) or len(part.logprobs) > LARGE_PARTS for part in self._parts)

    def ends_with_other(self, kind: str) -> bool:
        """Whether text of `kind` begins another part than the first."""
        return bool(self._parts) and self._parts[-1].kind != kind

    def say(self, kind: str, words: str, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        """Adds text; yields its events. `kind`: ``output_text`` or ``refusal``."""
        if not self._parts or self._parts[-1].kind != kind:
            yield from self._end_part()
            self._parts.append(Part(kind))
            yield "response.content_part.added", self._part_at(part=self._parts[-1].view())
        part = self._parts[-1]
        part.words.append(words)
        part.logprobs += logprobs
        if words and kind == "refusal":
            yield "response.refusal.delta", self._part_at(delta=words)
        elif words:
            yield self.text_event(words, logprobs)

    def text_event(self, words: str, logprobs: list[dict[str, Any]]) -> Event:
        """The event for text that continues the last part."""
        return "response.output_text.delta", self._part_at(delta=words, logprobs=logprobs)

    def cite(self, citation: dict[str, Any]) -> Event:
        """Adds a citation to the last part; returns its event."""
        known = self._parts[-1].annotations
        known.append(citation)
        added = self._part_at(annotation_index=len(known) - 1, annotation=citation)
        return "response.output_text.annotation.added", added

    @property
    def open_text(self) -> Part | None:
        """The open part of text, if any."""
        return self._parts[-1] if self._parts and self._parts[-1].kind == "output_text" else None

    def _last(self) -> Iterator[Event]:
        yield from self._end_part()

    def _end_part(self) -> Iterator[Event]:
        if not self._parts:
            return
        part = self._parts[-1].view()
        if part["type"] == "refusal":
            yield "response.refusal.done", self._part_at(refusal=part["refusal"])
        else:
            yield "response.output_text.done", self._part_at(text=part["text"], logprobs=part["logprobs"])
        yield "response.content_part.done", self._part_at(part=part)

    def _part_at(self, **more: Any) -> dict[str, Any]:
        return self._at(content_index=len(self._parts) - 1, **more)


@define(eq=False)
class ReasoningItem(Item):
    """The model's reasoning, as one summary. ``packs``: whether the client requested ``encrypted_content``."""

    packs: bool = False
    provider: str = ""
    key: str = "reasoning_content"
    extras: dict[str, dict[str, Any]] = field(factory=dict, repr=False)
    """See `carried.Carried`, as for ``provider`` and ``key``."""
    details: ReasoningDetails | None = field(default=None, repr=False)
    words: list[str] = field(factory=list, repr=False)

    @property
    def is_long(self) -> bool:
        return is_long(self.words)

    @property
    def _text(self) -> str:
        if len(self.words) > 1:
            self.words = [joined_text(self.words)]
        return self.words[0] if self.words else ""

    def view(self) -> dict[str, Any]:
        text = self._text
        summary = [{"type": "summary_text", "text": text}] if text else []
        item: dict[str, Any] = {"id": self.id, "type": "reasoning", "status": self.status, "summary": summary}
        if self.packs:
            item["encrypted_content"] = self._packed(text) if self.status != IN_PROGRESS else None
        return item

    def stored(self) -> dict[str, Any]:
        return self.view() if self.packs else {**self.view(), KEPT: self._packed(SHOWN if self._text else "")}

    def _packed(self, reasoning: str) -> str:
        if self.details is not None:
            return pack(Carried(self.provider, extras=self.extras, details=self.details.whole()))
        return pack(Carried(self.provider, reasoning, self.key, self.extras))

    def think(self, words: str) -> Iterator[Event]:
        if not self.words:
            yield "response.reasoning_summary_part.added", self._summary_at(part=_summary(""))
        self.words.append(words)
        yield self.text_event(words)

    def text_event(self, words: str) -> Event:
        """The event for reasoning that continues."""
        return "response.reasoning_summary_text.delta", self._summary_at(delta=words)

    def _last(self) -> Iterator[Event]:
        if self.words:
            text = self._text
            yield "response.reasoning_summary_text.done", self._summary_at(text=text)
            yield "response.reasoning_summary_part.done", self._summary_at(part=_summary(text))

    def _summary_at(self, **more: Any) -> dict[str, Any]:
        return self._at(summary_index=0, **more)


def _summary(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


@define(eq=False, kw_only=True)
class CallItem(Item):
    """A call of a function, of a custom tool or of the client's search for tools."""

    call_id: str
    tool: Tool
    provider: str = ""
    extra: dict[str, Any] | None = field(default=None, repr=False)
    """Data that its provider expects back with it."""
    received: Arguments = field(factory=Arguments, repr=False)

    @property
    def is_long(self) -> bool:
        return is_long(self.received.pieces)

    @property
    def arguments(self) -> str:
        """The JSON text received so far."""
        return self.received.text

    def view(self) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self.id, "status": self.status, "call_id": self.call_id, "name": self.tool.name}
        if self.tool.kind == "custom":
            done = self.status != IN_PROGRESS
            item |= {"type": "custom_tool_call", "input": arguments_to_input(self.arguments) if done else ""}
        elif self.tool.kind == "search":
            del item["name"]
            item |= {"type": "tool_search_call", "execution": "client", "arguments": _read(self.arguments)}
        else:
            item |= {"type": "function_call", "arguments": self.arguments}
            if self.tool.hides:  # none is encrypted here: without this, codex takes all for encrypted
                item["encrypted_function_args"] = []
        if self.tool.namespace is not None:
            item["namespace"] = self.tool.namespace
        return item

    def stored(self) -> dict[str, Any]:
        if self.extra is None:
            return self.view()
        carried = Carried(self.provider, extras={self.call_id: self.extra})
        return {**self.view(), KEPT: pack(carried)}

    def call(self, arguments: str) -> Iterator[Event]:
        """Adds arguments; yields their event."""
        self.received.pieces.append(arguments)
        if arguments and (event := self.text_event(arguments)) is not None:
            yield event

    def text_event(self, arguments: str) -> Event | None:
        """The event for more arguments. A custom tool's input is inside of them, so it is reported at the end; a
        search's are an object, which only its item has."""
        if self.tool.kind != "function":
            return None
        return "response.function_call_arguments.delta", self._at(delta=arguments)

    def _last(self) -> Iterator[Event]:
        if self.tool.kind == "search":
            return
        if self.tool.kind != "custom":
            if self.status == COMPLETED and not self.arguments.strip():  # clients parse them as JSON
                yield from self.call("{}")
            done = self._at(name=self.tool.name, arguments=self.arguments)
            yield "response.function_call_arguments.done", done
            return
        text = arguments_to_input(self.arguments)
        if text:
            yield "response.custom_tool_call_input.delta", self._at(delta=text)
        yield "response.custom_tool_call_input.done", self._at(input=text)


def _read(arguments: str) -> Any:
    """Arguments as an object; empty as long as they are none."""
    try:
        read = decode_text(arguments)
    except DecodeErrors:
        return {}
    return read if isinstance(read, dict) else {}


@define(eq=False, kw_only=True)
class ImageItem(Item):
    """A generated image: a data URI, or the provider's own URL, which then is the item's result."""

    url: str = field(repr=False)

    @property
    def is_long(self) -> bool:
        return is_long((self.url,))

    def view(self) -> dict[str, Any]:
        comma = self.url.find(",") if self.url.startswith("data:") else -1
        head, data = (self.url[:comma], tail_of(self.url, comma + 1)) if comma >= 0 else ("", "")
        form = head.removeprefix("data:").partition(";")[0].partition("/")[2]
        done = self.status != IN_PROGRESS
        result = (data or self.url) if done else None
        item = {"id": self.id, "type": "image_generation_call", "status": self.status, "result": result}
        return item | ({"output_format": form} if form else {})
