"""Turns a provider's deltas into content blocks that follow one another.

Parts of several tool calls may arrive interleaved, and text may come between them. A block has to be closed before the
next begins, so later blocks wait in a queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.answers import (
    DEFAULT_LIMITS,
    CallArguments,
    Delta,
    Texts,
    Thoughts,
    ToolCall,
    Words,
    new_call_id,
)
from manallm_proxy.contract.provider_errors import too_many_items
from manallm_proxy.contract.records import define
from manallm_proxy.doors.carried import EXTRA, KEYS
from manallm_proxy.doors.messages.block import Block, Kind
from manallm_proxy.doors.messages.request import Thinking
from manallm_proxy.openai.assistant_message import image_link
from manallm_proxy.openai.call_arguments import begins_another
from manallm_proxy.openai.large import LARGE_PARTS, is_long
from manallm_proxy.openai.reasoning_details import ReasoningDetails

_STOP_REASONS: Final = {"length": "max_tokens", "content_filter": "refusal"}
"""Anthropic's reason by OpenAI's finish reason; all others mean that the model has finished."""

_KINDS: Final[dict[type, Kind]] = {Words: Kind.TEXT, Thoughts: Kind.THINKING}


@define
class Blocks:
    """The queue of blocks. Only the first one is being sent."""

    thinking: Thinking = field(factory=Thinking)
    stops: frozenset[str] = frozenset()
    """The stop sequences of the request."""
    names: dict[str, str] = field(factory=dict)
    """See `Asked.names`."""
    limit: int = DEFAULT_LIMITS.all_items
    """Of blocks that wait to be sent."""
    provider: str = ""
    """The name of the provider that answers."""
    _queue: deque[Block] = field(factory=deque, repr=False)
    _calls: dict[int, Block] = field(factory=dict, repr=False)
    """The last tool call of each index in the provider's answer."""
    _ids: set[str] = field(factory=set, repr=False)
    """Ids of all calls. They must be unique, since results refer to them."""
    _details: ReasoningDetails | None = field(default=None, repr=False)
    """What must come back, as received so far; in no block as long as it is not needed."""
    _kept_in: Block | None = None
    """The thinking block that ``_details`` are in."""
    _finish: str | None = None
    _refused: bool = False
    stop_sequence: str | None = None
    """The one that ended the answer, if the provider says so."""

    def add(self, delta: Delta) -> None:
        """Adds `delta`. Only one choice was requested."""
        if delta.index:
            return
        if delta.reasoning and self.thinking.signed:
            self._think(delta)
        if delta.details and self.thinking.signed:
            self._keep(delta.details)
        if text := delta.content + delta.refusal:
            self._append(Kind.TEXT, text)
        for url in delta.images:  # there is no block for a generated image
            self._append(Kind.TEXT, image_link(url))
        for part in delta.tool_calls:
            self._add_call(part)
        self._finish = delta.finish or self._finish
        if delta.finish == "stop" and delta.stopped_by in self.stops:
            self.stop_sequence = delta.stopped_by
        self._refused = self._refused or bool(delta.refusal)

    def ready(self, *, all_of_them: bool = False) -> Iterator[tuple[Block, bool]]:
        """The blocks that may be sent now, in order; True: the block ends. `all_of_them`: at the end of the answer."""
        while self._queue:
            block = self._queue[0]
            ends = all_of_them or (len(self._queue) > 1 and block.may_end)
            if ends:
                self._queue.popleft()
                block.sign(self.provider)
            yield block, ends
            if not ends:
                return

    def continued_by(self, texts: Texts) -> Block | None:
        """The block being sent, if `texts` continue it and no other waits; else None. All that was added before is
        sent."""
        if len(self._queue) != 1:
            return None
        block = self._queue[0]
        if isinstance(texts, CallArguments):
            if block is not self._calls.get(texts.place):
                return None
            block.pieces.append(texts.text)  # kept to detect the end of the input
            block.sent += 1
            return block
        is_shown = self.thinking.shown or type(texts) is Words
        return block if block.kind is _KINDS.get(type(texts)) and is_shown else None

    @property
    def wait_long(self) -> bool:
        """Whether many blocks wait to be sent, or a long one."""
        return len(self._queue) > LARGE_PARTS or any(is_long(block.pieces[block.sent :]) for block in self._queue)

    @property
    def stop_reason(self) -> str:
        if self._refused:
            return "refusal"
        if self.stop_sequence is not None:
            return "stop_sequence"
        done = "tool_use" if self._calls else "end_turn"
        return _STOP_REASONS.get(self._finish or "", done)

    def _think(self, delta: Delta) -> None:
        """Adds reasoning. Kimi and DeepSeek refuse the result of a call without what was thought before it."""
        key = delta.reasoning_key if delta.reasoning_key in KEYS else ""
        if key or self.thinking.shown:
            thought = self._thought()
            thought.key = key
            (thought.pieces if self.thinking.shown else thought.hidden).append(delta.reasoning)

    def _append(self, kind: Kind, text: str) -> Block:
        if not self._queue or self._queue[-1].kind is not kind:
            self._wait(Block(kind))
        self._queue[-1].pieces.append(text)
        return self._queue[-1]

    def _wait(self, block: Block) -> None:
        """Raises BadResponse if too many do."""
        if len(self._queue) >= self.limit:
            raise too_many_items(self.limit)
        self._queue.append(block)

    def _add_call(self, part: ToolCall) -> None:
        block = self._calls.get(part.index)
        if block is None or block.arguments is None or begins_another(part, block.id, block.arguments):
            id_ = part.id if part.id and part.id not in self._ids else new_call_id()
            self._ids.add(id_)
            self._carry(id_, part.extra)
            block = self._calls[part.index] = Block(Kind.TOOL_USE, id_, self.names.get(part.name, part.name))
            self._wait(block)
        else:
            self._carry(block.id, part.extra)
        if part.arguments:
            block.pieces.append(part.arguments)

    def _carry(self, call_id: str, extra: dict[str, Any]) -> None:
        """Puts data that the client must return with a call into the thinking block before it."""
        if self.thinking.signed and (data := extra.get(EXTRA)):
            self._thought().extras[call_id] = data

    def _keep(self, details: tuple[dict[str, Any], ...]) -> None:
        """The same for data that must come back with the whole turn."""
        if self._details is None or self._kept_in not in (None, self._queue[-1] if self._queue else None):
            self._details, self._kept_in = ReasoningDetails(self.limit), None
        self._details.add(details)
        if self._details.is_needed and self._kept_in is None:
            self._kept_in = self._thought()
            self._kept_in.details = self._details

    def _thought(self) -> Block:
        """The last block, if it is thinking; else a new one."""
        if not self._queue or self._queue[-1].kind is not Kind.THINKING:
            self._wait(Block(Kind.THINKING))
        return self._queue[-1]
