"""Recognizes mistakes of the caller that local servers report as failures of their own.

llama-server answers every ``std::runtime_error`` of its request parser with 500 (tools/server/server.cpp,
``ex_wrapper``; the texts are in server-common.cpp, server-context.cpp and common/chat.cpp). Ollama does so for
options and, in 0.12, for schemas (server/routes.go, ``handleScheduleError``), and forwards the errors of the
llama-server inside it. LM Studio reports what a chat template refuses inside of a stream (zed issue 45379, merged
generic-copilot pull request 43). Counted as failures, two such requests would open the model's circuit for everybody.

Each pattern matches at the start of the message: what follows may quote the request, or the model.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from manallm_proxy.contract.records import frozen

Kind = Literal["capability", "context", "request", "model"]


@frozen
class Mistake:
    """``kind``: a missing capability, a prompt that does not fit, an invalid request, or an unknown model."""

    kind: Kind
    param: str | None = None


_WORDS = r"(?:chat|completions?|tools?|functions?|thinking|images?|vision|audio|embeddings?|insert|generate)"

_ROWS: Final[tuple[tuple[str, Mistake], ...]] = (
    (r"(?:image|audio|video) input is not supported", Mistake("capability", "messages")),
    (r"multimodal data provided, but model does not support", Mistake("capability", "messages")),
    (r"this server does not support ", Mistake("capability", "model")),
    (r"the current (?:model|context) does not (?:support )?(?:audio|logits)", Mistake("capability", "model")),
    (rf'"?[^\s"]{{1,256}}"? does(?: not|n\'t) support {_WORDS}\.?$', Mistake("capability", "model")),
    (r"tool_choice param requires --jinja", Mistake("capability", "tool_choice")),
    (r"(?:tools param requires --jinja|cannot use tools with stream)", Mistake("capability", "tools")),
    (r"only no echo is supported", Mistake("capability", "echo")),
    (r"unsupported param: ", Mistake("capability")),
    (r"input (?:\(\d+ tokens\) )?is (?:too large to process|larger than the max context)", Mistake("context")),
    (r"(?:the )?request (?:\(\d+ tokens\) )?exceeds the available context size", Mistake("context")),
    (r"the (?:input|prompt)(?: length)? (?:is longer than|exceeds) the context length", Mistake("context")),
    (r"the input \(\d+ tokens\) is longer than the model's context length", Mistake("context")),
    (r"this model's maximum context length is ", Mistake("context")),
    (r"cannot use both json_schema and grammar", Mistake("request", "response_format")),
    (r"cannot use custom grammar constraints with tools", Mistake("request", "grammar")),
    (r"(?:field 'json_schema': )?\"json_schema\": ", Mistake("request", "response_format")),
    (r"(?:unable to generate parser for this template.{0,60}: )?json schema error at ", Mistake("request")),
    (r"invalid json schema in format|invalid format: ", Mistake("request", "response_format")),
    (r"failed to parse grammar", Mistake("request", "grammar")),
    (r'option "[^"]{1,64}" must be of ', Mistake("request")),
    (r"failed to (?:load image or audio file|download image)", Mistake("request", "messages")),
    (r"invalid (?:url value|url format|base64 value)|url must be base64 encoded", Mistake("request", "messages")),
    (r"failed to parse (?:messages|tool call arguments as json): ", Mistake("request", "messages")),
    (r"failed to parse tools: ", Mistake("request", "tools")),
    (
        r"error rendering prompt with jinja template: .{0,200}(?:roles must alternate|system message must be)",
        Mistake("request", "messages"),
    ),
    (r'"prompt" (?:is required|must not be empty|elements must be )', Mistake("request", "prompt")),
    (r"failed to tokenize prompt", Mistake("request", "prompt")),
    (r"model (?:'[^']{1,256}'|name=\S{1,256}) (?:is )?not found", Mistake("model", "model")),
)
_PATTERNS: Final = tuple((re.compile(pattern, re.IGNORECASE | re.ASCII), mistake) for pattern, mistake in _ROWS)
_TEMPLATE: Final = re.compile(r"\bJinja Exception: ")
"""A chat template that rejects the messages, for instance if roles do not alternate (common/jinja/value.cpp)."""
_ECHO: Final = re.compile(r"; (?:messages|tools|tool_choice) = .*", re.DOTALL)
"""Some builds quote the request after the reason."""


def mistake_in(text: str) -> Mistake | None:
    """The caller's mistake that `text`, a cleaned message, reports; None if it reports something else."""
    for pattern, mistake in _PATTERNS:
        if pattern.match(text):
            return mistake
    return Mistake("request", "messages") if _TEMPLATE.search(text) else None


def without_echo(text: str) -> str:
    """`text` without a quotation of the request at its end."""
    return _ECHO.sub("", text)
