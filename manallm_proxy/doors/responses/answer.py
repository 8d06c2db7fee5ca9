"""One answer: a provider's deltas in, output items and their events out, in order of arrival."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from manallm_proxy.doors.carried import EXTRA
from manallm_proxy.doors.responses.output import (
    COMPLETED,
    INCOMPLETE,
    CallItem,
    Event,
    ImageItem,
    Item,
    MessageItem,
    Part,
    ReasoningItem,
)
from manallm_proxy.doors.responses.tool_names import Tool
from manallm_proxy.openai.call_arguments import begins_another
from manallm_proxy.openai.large import LARGE_PARTS
from manallm_proxy.openai.reasoning_details import ReasoningDetails

_CUT: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""This API's reason by the finish reason of an incomplete answer."""
_PREFIXES: Final = {"function": "fc", "custom": "ctc", "search": "tsc"}
"""Of the ids of calls, by the kind of their tools."""
Growing = Part | ReasoningItem | CallItem
"""Items or parts that text may be added to."""


@define
class AnswerItems:
    """The output items. One message or reasoning item is open at a time; calls stay open until the end, since their
    parts may interleave."""

    _new_id: Callable[[str], str]
    _tool: Callable[[str], Tool]
    """Looks up the tool by the name that the model calls."""
    _packs: bool = False
    """Whether the client requested ``encrypted_content``."""
    provider: str = ""
    """The name of the provider that answers."""
    items: list[Item] = field(factory=list)
    finish: str | None = None
    _text: MessageItem | None = None
    _thought: ReasoningItem | None = None
    _calls: dict[int, CallItem] = field(factory=dict)
    """The latest call of each index."""
    limit: int = DEFAULT_LIMITS.all_items
    """Of items and their parts in all."""
    _number: int = 0
    """Of both so far."""
    _details: ReasoningDetails | None = field(default=None, repr=False)
    """Of the open reasoning item, or of none yet: an item is made for them only if they are needed."""
    _call_ids: set[str] = field(factory=set)
    """Ids of all calls. They must be unique, since results refer to them."""
    _last: Item | None = None
    """The item that grew last: if the answer was cut, this item was."""

    @property
    def incomplete(self) -> str | None:
        """Why the answer is incomplete, if it is."""
        return _CUT.get(self.finish or "")

    @property
    def failed(self) -> bool:
        """Whether the provider reported an error by its finish reason."""
        return self.finish == "error"

    @property
    def is_long(self) -> bool:
        """Whether encoding all of it takes milliseconds."""
        return len(self.items) > LARGE_PARTS or any(item.is_long for item in self.items)

    def closes_long(self, deltas: Iterable[Delta]) -> bool:
        """Whether these may end the open text or reasoning, and its whole text, which then is told again, is long."""
        item = self._text if self._thought is None else self._thought
        if item is None:
            return False
        ends = _ends_thought if item is self._thought else _ends_text
        return any(map(ends, deltas)) and item.is_long

    def take_whole(self, choices: Sequence[Delta]) -> None:
        """Adds the whole answer, which is the first of `choices`, and closes it unless it `failed`.

        A plain text, the common case, becomes its item without creating a stream's events.
        """
        for delta in choices[:1]:
            if delta.content and delta.finish != "error" and delta == Delta(delta.content, finish=delta.finish):
                self.finish = delta.finish
                status = COMPLETED if self.incomplete is None else INCOMPLETE
                self.items.append(MessageItem(self._new_id("msg"), 0, status, [Part("output_text", [delta.content])]))
                return
            for _ in self.take(delta):
                pass
        if not self.failed:
            for _ in self.end():
                pass

    def take(self, delta: Delta) -> Iterator[Event]:
        """Adds `delta`; yields its events."""
        if delta.reasoning:
            yield from self._think(delta.reasoning, delta.reasoning_key)
        if delta.details:
            yield from self._keep(delta.details)
        logprobs = _logprobs(delta.logprobs) if delta.logprobs is not None else []
        if delta.content or logprobs:
            yield from self._say("output_text", delta.content, logprobs)
        for citation in delta.citations:
            yield from self._cite(citation)
        if delta.refusal:
            yield from self._say("refusal", delta.refusal, [])
        for url in delta.images:
            yield from self._show(url)
        for part in delta.tool_calls:
            yield from self._call(part)
        self.finish = delta.finish or self.finish

    def continued_by(self, texts: Texts) -> Growing | None:
        """Adds `texts` to the open item or part that they continue, and returns it; None, without a change, if there is
        none. Creates no events."""
        item: Item | None
        match texts:
            case Words():
                item = self._text if self._thought is None else None
                part = item.open_text if item is not None else None
                if part is not None:
                    part.words.append(texts.text)
                    self._last = item
                return part
            case Thoughts() if self._thought is not None and self._text is None and self._thought.words:
                item = self._thought
                item.key = texts.reasoning_key
                item.words.append(texts.text)
            case CallArguments() if (item := self._calls.get(texts.place)) is not None:
                item.received.pieces.append(texts.text)
            case _:
                return None
        self._last = item
        return item

    def text_event(self, of: Growing, text: str) -> Event | None:
        """The event that `take` would yield for `text` continuing `of`; None if that has none before its end."""
        if not isinstance(of, Part):
            return of.text_event(text)
        assert self._text is not None
        return self._text.text_event(text, [])

    def end(self) -> Iterator[Event]:
        """Closes all open items; yields their events. An answer without content becomes an empty message."""
        if not self.items:
            yield from self._say("output_text", "", [])
        for item in self.items:
            if item.status == "in_progress":
                cut = self.incomplete is not None and item is self._last
                yield from item.close(INCOMPLETE if cut else COMPLETED)
        self._text = self._thought = None

    def break_off(self) -> None:
        """Marks open items as incomplete, when the answer was cut short; there are no events for that."""
        for item in self.items:
            if item.status == "in_progress":
                item.status = INCOMPLETE

    def views(self) -> list[dict[str, Any]]:
        """``output`` as sent to the client."""
        return [item.view() for item in self.items]

    def _add(self, item: Item) -> Event:
        self._count()
        self.items.append(item)
        return item.open()

    def _count(self) -> None:
        """One more. Raises BadResponse if that is one too many, as it was with all after it."""
        if self._number >= self.limit:
            raise too_many_items(self.limit)
        self._number += 1

    def _close_text(self) -> Iterator[Event]:
        text, self._text = self._text, None
        if text is not None:
            yield from text.close(COMPLETED)

    def _close_thought(self) -> Iterator[Event]:
        thought, self._thought = self._thought, None
        if thought is not None:
            if thought.details is not None:
                self._details = None
            yield from thought.close(COMPLETED)

    def _keep(self, details: tuple[dict[str, Any], ...]) -> Iterator[Event]:
        """Adds what has to come back with the turn to its reasoning."""
        if self._details is None:
            self._details = ReasoningDetails(self.limit)
        self._details.add(details)
        if self._details.is_needed and (self._thought is None or self._thought.details is None):
            yield from self._close_text()
            yield from self._open_thought()
            assert self._thought is not None
            self._thought.details = self._details

    def _think(self, words: str, key: str) -> Iterator[Event]:
        yield from self._close_text()
        yield from self._open_thought()
        assert self._thought is not None
        self._last, self._thought.key = self._thought, key
        yield from self._thought.think(words)

    def _open_thought(self) -> Iterator[Event]:
        if self._thought is None:
            new = self._new_id("rs")
            self._thought = ReasoningItem(new, len(self.items), packs=self._packs, provider=self.provider)
            yield self._add(self._thought)

    def _say(self, kind: str, words: str, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        yield from self._close_thought()
        if self._text is None:
            self._text = MessageItem(self._new_id("msg"), len(self.items))
            yield self._add(self._text)
        self._last = self._text
        if self._text.ends_with_other(kind):
            self._count()
        yield from self._text.say(kind, words, logprobs)

    def _cite(self, citation: dict[str, Any]) -> Iterator[Event]:
        if self._text is None or self._text.open_text is None:
            yield from self._say("output_text", "", [])
        self._count()
        assert self._text is not None
        yield self._text.cite(citation)

    def _show(self, url: str) -> Iterator[Event]:
        yield from self._close_thought()
        yield from self._close_text()
        picture = ImageItem(id=self._new_id("ig"), index=len(self.items), url=url)
        yield self._add(picture)
        yield from picture.close(COMPLETED)

    def _call(self, part: ToolCall) -> Iterator[Event]:
        id_ = self._begins(part)
        if id_ is not None:
            extra = part.extra.get(EXTRA)
            yield from self._carry(id_, extra)
            yield from self._close_thought()
            yield from self._close_text()
            tool = self._tool(part.name)
            new = self._new_id(_PREFIXES[tool.kind])
            begun = CallItem(id=new, index=len(self.items), call_id=id_, tool=tool, provider=self.provider, extra=extra)
            self._calls[part.index] = begun
            yield self._add(begun)
        call = self._last = self._calls[part.index]
        yield from call.call(part.arguments)

    def _begins(self, part: ToolCall) -> str | None:
        """The id of the new call that `part` begins; None if it continues a call."""
        known = self._calls.get(part.index)
        if known is not None and not begins_another(part, known.call_id, known.received):
            return None
        id_ = part.id if part.id and part.id not in self._call_ids else new_call_id()
        self._call_ids.add(id_)
        return id_

    def _carry(self, id_: str, extra: dict[str, Any] | None) -> Iterator[Event]:
        """Stores data that must come back with a call in the reasoning item before it."""
        if not (self._packs and extra):
            return
        yield from self._close_text()
        yield from self._open_thought()
        assert self._thought is not None
        self._thought.extras[id_] = extra


def _ends_thought(delta: Delta) -> bool:
    if isinstance(delta, Texts):  # whose other members would be read
        return not isinstance(delta, Thoughts)
    return bool(delta.content or delta.logprobs or delta.citations) or _ends_both(delta)


def _ends_text(delta: Delta) -> bool:
    if isinstance(delta, Texts):
        return not isinstance(delta, Words)
    return bool(delta.reasoning or delta.details) or _ends_both(delta)


def _ends_both(delta: Delta) -> bool:
    return bool(delta.refusal or delta.images or delta.tool_calls)


def _logprobs(value: Any) -> list[dict[str, Any]]:
    """A chat's ``logprobs`` in this API's form, whose types require the bytes of each token, known or not."""
    return [
        {**_token(row), "top_logprobs": [_token(top) for top in _rows(row.get("top_logprobs"))]}
        for row in _rows(value.get("content") if isinstance(value, dict) else None)
    ]


def _rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _token(row: dict[str, Any]) -> dict[str, Any]:
    token = str(row.get("token") or "")
    known, number = row.get("bytes"), row.get("logprob")
    return {
        "token": token,
        "logprob": number if isinstance(number, int | float) else 0.0,
        "bytes": known if isinstance(known, list) else list(token.encode()),
    }
