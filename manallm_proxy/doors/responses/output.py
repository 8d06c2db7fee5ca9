"""Output items, from their first word to their last. Each yields the events that tell of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from attrs import define, field

from manallm_proxy.doors.responses.carried import Carried, pack
from manallm_proxy.doors.responses.tool_names import Tool, arguments_to_input

Event = tuple[str, dict[str, Any]]
"""Type, and the fields beside ``type`` and ``sequence_number``."""

IN_PROGRESS: Final = "in_progress"
COMPLETED: Final = "completed"
INCOMPLETE: Final = "incomplete"


@define(eq=False)
class Item:
    """``index`` is its place in ``output``."""

    id: str
    index: int
    status: str = IN_PROGRESS

    def view(self) -> dict[str, Any]:
        """The item as it is by now."""
        raise NotImplementedError  # each type has its own

    def stored(self) -> dict[str, Any]:
        """The same, with what only this proxy needs of it in a later turn."""
        return self.view()

    def close(self, status: str) -> Iterator[Event]:
        """Its last events."""
        self.status = status
        yield from self._last()
        yield "response.output_item.done", {"output_index": self.index, "item": self.view()}

    def open(self) -> Event:
        """Its first event."""
        return "response.output_item.added", {"output_index": self.index, "item": self.view()}

    def _last(self) -> Iterator[Event]:
        yield from ()

    def _at(self, **more: Any) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.index, **more}


@define
class _Part:
    """One part of a message: a text, or a refusal."""

    kind: str
    words: list[str] = field(factory=list, repr=False)
    logprobs: list[dict[str, Any]] = field(factory=list, repr=False)

    def view(self) -> dict[str, Any]:
        text = "".join(self.words)
        if self.kind == "refusal":
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs}


@define(eq=False)
class MessageItem(Item):
    """What the model says."""

    _parts: list[_Part] = field(factory=list)

    def view(self) -> dict[str, Any]:
        content = [part.view() for part in self._parts]
        return {"id": self.id, "type": "message", "status": self.status, "role": "assistant", "content": content}

    def say(self, kind: str, words: str, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        """`kind`: ``output_text`` or ``refusal``."""
        if not self._parts or self._parts[-1].kind != kind:
            yield from self._end_part()
            self._parts.append(_Part(kind))
            yield "response.content_part.added", self._part_at(part=self._parts[-1].view())
        part = self._parts[-1]
        part.words.append(words)
        part.logprobs += logprobs
        if words and kind == "refusal":
            yield "response.refusal.delta", self._part_at(delta=words)
        elif words:
            yield "response.output_text.delta", self._part_at(delta=words, logprobs=logprobs)

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
    """What the model thinks, as one summary. ``packs``: whether the client asked for ``encrypted_content``."""

    packs: bool = False
    provider: str = ""
    key: str = "reasoning_content"
    extras: dict[str, dict[str, Any]] = field(factory=dict, repr=False)
    """For these three see `carried.Carried`."""
    _words: list[str] = field(factory=list, repr=False)

    def view(self) -> dict[str, Any]:
        text = "".join(self._words)
        summary = [{"type": "summary_text", "text": text}] if text else []
        item: dict[str, Any] = {"id": self.id, "type": "reasoning", "status": self.status, "summary": summary}
        if self.packs:
            done = self.status != IN_PROGRESS
            carried = Carried(self.provider, text, self.key, self.extras)
            item["encrypted_content"] = pack(carried) if done else None
        return item

    def think(self, words: str) -> Iterator[Event]:
        if not self._words:
            yield "response.reasoning_summary_part.added", self._summary_at(part=_summary(""))
        self._words.append(words)
        yield "response.reasoning_summary_text.delta", self._summary_at(delta=words)

    def _last(self) -> Iterator[Event]:
        if self._words:
            text = "".join(self._words)
            yield "response.reasoning_summary_text.done", self._summary_at(text=text)
            yield "response.reasoning_summary_part.done", self._summary_at(part=_summary(text))

    def _summary_at(self, **more: Any) -> dict[str, Any]:
        return self._at(summary_index=0, **more)


def _summary(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


@define(eq=False, kw_only=True)
class CallItem(Item):
    """A call of a function or of a custom tool. ``flat``: the name that the model used."""

    call_id: str
    tool: Tool
    provider: str = ""
    extra: dict[str, Any] | None = field(default=None, repr=False)
    """What its provider wants back with it."""
    _arguments: list[str] = field(factory=list, repr=False)

    @property
    def arguments(self) -> str:
        """As far as they have come."""
        return "".join(self._arguments)

    @property
    def may_be_whole(self) -> bool:
        """Whether their last word may be the end of an object."""
        return next((text for each in reversed(self._arguments) if (text := each.rstrip())), "").endswith("}")

    def view(self) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self.id, "status": self.status, "call_id": self.call_id, "name": self.tool.name}
        if self.tool.kind == "custom":
            done = self.status != IN_PROGRESS
            item |= {"type": "custom_tool_call", "input": arguments_to_input(self.arguments) if done else ""}
        else:
            item |= {"type": "function_call", "arguments": self.arguments}
        if self.tool.namespace is not None:
            item["namespace"] = self.tool.namespace
        return item

    def stored(self) -> dict[str, Any]:
        if self.extra is None:
            return self.view()
        carried = Carried(self.provider, extras={self.call_id: self.extra})
        return {**self.view(), "encrypted_content": pack(carried)}

    def call(self, arguments: str) -> Iterator[Event]:
        """A custom tool's input stands inside of the arguments: it is told once they are complete."""
        self._arguments.append(arguments)
        if arguments and self.tool.kind != "custom":
            yield "response.function_call_arguments.delta", self._at(delta=arguments)

    def _last(self) -> Iterator[Event]:
        if self.tool.kind != "custom":
            if self.status == COMPLETED and not self.arguments.strip():  # clients read them as JSON
                yield from self.call("{}")
            told = self._at(name=self.tool.name, arguments=self.arguments)
            yield "response.function_call_arguments.done", told
            return
        text = arguments_to_input(self.arguments)
        if text:
            yield "response.custom_tool_call_input.delta", self._at(delta=text)
        yield "response.custom_tool_call_input.done", self._at(input=text)


@define(eq=False, kw_only=True)
class ImageItem(Item):
    """A picture that the model made, of which we have a data URI."""

    url: str = field(repr=False)

    def view(self) -> dict[str, Any]:
        head, _, data = self.url.partition(",")
        form = head.removeprefix("data:").partition(";")[0].partition("/")[2]
        done = self.status != IN_PROGRESS
        result = (data or self.url) if done else None
        item = {"id": self.id, "type": "image_generation_call", "status": self.status, "result": result}
        return item | ({"output_format": form} if form else {})
