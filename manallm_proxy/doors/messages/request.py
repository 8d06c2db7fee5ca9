"""Translates a request to ``POST /v1/messages`` into a chat completion.

What chat completions lack (``metadata``, ``cache_control``, ``container``, ``service_tier``, ...) is left out, or
refused if the answer depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.errors import InvalidRequest, Untranslatable
from manallm_proxy.contract.provider import RequestSummary
from manallm_proxy.contract.records import define
from manallm_proxy.doors.messages.history import History
from manallm_proxy.doors.messages.tools import long_names, tool_fields
from manallm_proxy.openai.caller_paths import CallerPaths
from manallm_proxy.openai.json_object import split_object
from manallm_proxy.openai.large import is_large
from manallm_proxy.openai.reasoning import effort_of_budget
from manallm_proxy.openai.request import made_request, refuse_case_variants
from manallm_proxy.openai.request_fields import Fields, optional, required, texts_of, wrong
from manallm_proxy.openai.stand_ins import StandIns, read_texts

_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
_FIELDS: Final = {
    "reasoning_effort": "thinking",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "tools": "tools",
    "max_completion_tokens": "max_tokens",
}
"""A chat's fields -> their names in this API."""


class ThreadsUnsupported(InvalidRequest):
    """A request that continues a thread, with only new messages: no threads are stored here.

    The SDKs' tool runners send ``thread`` by default; after exactly this error they send the whole history instead.
    """

    code = "thread_unsupported_request"

    def __init__(self) -> None:
        super().__init__("'thread' is not served here: send all messages, without it", param="thread")


@define  # not frozen: as `answers.Usage`
class Thinking:
    """Which thinking the client wants to see."""

    shown: bool = True
    """Whether the answer contains its text."""
    signed: bool = True
    """Whether thinking blocks are allowed at all: their signatures hold what must come back with a tool call."""


@define  # as above
class Asked:
    """A translated request: the chat's body, what to show of its answer, and the origins of its parts."""

    chat: bytes = field(repr=False)
    summary: RequestSummary
    """The summary of ``chat``."""
    thinking: Thinking
    stops: frozenset[str]
    """Its stop sequences."""
    paths: CallerPaths
    names: dict[str, str] = field(factory=dict)
    """The client's names of tools that the chat has shorter, by those."""
    notes: tuple[str, ...] = ()
    """What was left out, for the log."""
    own: Callable[[str], tuple[bytes, RequestSummary]] | None = field(default=None, repr=False)
    """Makes both for the provider of that name; set if the client sent back data meant for one provider alone."""


def read_request(body: bytes, *, counts_only: bool = False, is_checked: bool = False) -> Asked:
    """The translated request. `counts_only`: ``max_tokens`` may be missing. `is_checked`: has no duplicate keys.

    Raises InvalidRequest with the path in ``param``.
    """
    if not is_checked:
        refuse_case_variants(split_object(body)[0])  # of a duplicate key, only the last value would be read
    asked, texts = read_texts(body)
    if asked.get("thread") is not None:
        raise ThreadsUnsupported
    _refuse_mcp_servers(asked)
    thinking, effort = _thinking(asked)
    history = History.read(asked)
    fields: Fields = {
        "model": optional(asked, "model", str),
        "messages": history.messages,
        "stream": optional(asked, "stream", bool),
        "max_tokens": _max_tokens(asked, required=not counts_only),
        "temperature": optional(asked, "temperature", float),
        "top_p": optional(asked, "top_p", float),
        "top_k": optional(asked, "top_k", int),
        "stop": _stop(asked) if "stop_sequences" in asked else None,
        **tool_fields(asked),
        **_output(asked, effort),
    }
    fields = {key: value for key, value in fields.items() if value is not None}
    large = is_large(body)

    made = _made(fields, large, texts)

    def own(provider: str) -> tuple[bytes, RequestSummary]:
        if not history.carries(provider):
            return made
        return _made({**fields, "messages": history.messages_for(provider)}, large, texts)

    paths = CallerPaths("messages", history.origins, _FIELDS)
    stops = frozenset(fields.get("stop", ()))
    notes = tuple(f"not sent on: block {kind}" for kind in history.left_out)
    return Asked(*made, thinking, stops, paths, long_names(asked), notes, own if history.carries() else None)


def _made(fields: Fields, large: bool, texts: StandIns) -> tuple[bytes, RequestSummary]:
    try:
        return made_request(fields, ("messages", list), large=large, encode_large=texts.encode_whole)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


def _refuse_mcp_servers(asked: Fields) -> None:
    if optional(asked, "mcp_servers", list):
        raise Untranslatable("'mcp_servers' are not served here: run their tools in the client", param="mcp_servers")


def _max_tokens(asked: Fields, *, required: bool) -> int | None:
    most: int | None = optional(asked, "max_tokens", int)
    if most is None and required:
        raise InvalidRequest("'max_tokens' is missing", param="max_tokens")
    if most is not None and most < 1:
        raise wrong("max_tokens", "at least 1")
    return most


def _stop(asked: Fields) -> list[str] | None:
    return texts_of(optional(asked, "stop_sequences", list) or [], "stop_sequences") or None


def _thinking(asked: Fields) -> tuple[Thinking, str | None]:
    """``thinking``, and the effort that it corresponds to; None: the model decides."""
    wanted = optional(asked, "thinking", dict)
    if wanted is None:
        return Thinking(), None
    shown = optional(wanted, "display", str, "thinking.") != "omitted"
    match required(wanted, "type", str, "thinking."):
        case "disabled":
            return Thinking(shown=False, signed=False), "none"
        case "enabled":
            budget = required(wanted, "budget_tokens", int, "thinking.")
            return Thinking(shown), effort_of_budget(budget)
        case "adaptive" | "between_tools":
            return Thinking(shown), None
    raise wrong("thinking.type", "'enabled', 'disabled', 'adaptive' or 'between_tools'")


def _output(asked: Fields, effort: str | None) -> Fields:
    """``output_config``, whose effort overrides that of a thinking budget, unless thinking is disabled."""
    config = optional(asked, "output_config", dict) or {}
    path = "output_config."
    named = optional(config, "effort", str, path)
    if named is not None and named not in _EFFORTS:
        raise wrong(path + "effort", " or ".join(repr(each) for each in _EFFORTS))
    fields: Fields = {"reasoning_effort": effort if effort == "none" else named or effort}
    wanted, path = optional(config, "format", dict, path), path + "format."
    if wanted is None:  # the field's name before output_config
        wanted, path = optional(asked, "output_format", dict), "output_format."
    if wanted is not None:
        fields["response_format"] = _format(wanted, path)
    return fields


def _format(wanted: Fields, path: str) -> Any:
    if required(wanted, "type", str, path) != "json_schema":
        raise wrong(path + "type", "'json_schema'")
    schema = required(wanted, "schema", dict, path)
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
