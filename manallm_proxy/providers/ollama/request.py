"""OpenAI's requests in Ollama's native words (ollama api/types.go at v0.33).

The native API rather than Ollama's own ``/v1``: there an error in mid stream is lost, a silent client gets
temperature 1.0, and ``num_ctx`` cannot be set.

What the caller got wrong is refused here with the path of the mistake, because Ollama answers part of it
with 500, which would blame the model and send the request on to the next target. What Ollama would
ignore although the answer depends on it (``tool_choice: required``, ``n: 2``) is refused as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.json_object import encode
from manallm_proxy.openai.request_fields import (
    Fields,
    all_of,
    decoded,
    optional,
    required,
    typed,
    wanted_schema,
    wrong,
)
from manallm_proxy.providers.ollama import messages as ollama_messages
from manallm_proxy.providers.wire import Request

RUNNER_OPTIONS: Final = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "num_thread",
    "draft_num_predict",
)
"""A change of one of these reloads the model (server/sched.go needsReload), so the operator's value stands."""

_OPTION_KINDS: Final[dict[str, type]] = {
    **dict.fromkeys(RUNNER_OPTIONS, int),
    "use_mmap": bool,
    **dict.fromkeys(("num_keep", "seed", "num_predict", "top_k", "repeat_last_n"), int),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "temperature", "repeat_penalty"), float),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), float),
    "stop": list,
}
"""api/types.go Options. Ollama answers 500 to another type, and passes over a name that it does not know."""

_SAMPLING: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
    "stop": "stop",
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",  # after max_tokens, which it replaced: the later one wins
}
_TOP_LEVEL: Final = ("keep_alive", "think", "truncate", "shift")
"""Settings that Ollama reads beside ``options``, not in it."""

_THINK: Final[dict[str, bool | str]] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}
"""OpenAI's ``reasoning_effort`` -> ``think`` (openai/openai.go thinkFromReasoningEffort)."""


def build(call: Call, entry: Entry) -> Request:
    """The POST for one target. InvalidRequest and Unsupported name the offending field in ``param``."""
    asked = {**decoded(call.body), **call.ollama}
    match call.endpoint:
        case Endpoint.CHAT:
            path, fields = "api/chat", _chat(asked)
        case Endpoint.COMPLETIONS:
            path, fields = "api/generate", _generate(asked)
        case Endpoint.EMBEDDINGS:
            path, fields = "api/embed", _embed(asked)
        case other:
            raise Unsupported(f"Ollama has nothing like {other.path}", param="model")
    if call.endpoint is not Endpoint.EMBEDDINGS:
        fields["stream"] = call.summary.stream  # Ollama's default is true
    fields |= _settings(asked, entry.options, call.endpoint)
    if "thinking" in call.denied and "think" not in asked:
        fields.pop("think", None)  # Ollama would answer 400; an effort is often a client's global setting
    try:
        return Request(path, encode({"model": entry.target.model, **fields}))
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


# --- the three endpoints --------------------------------------------------------------------------


def _chat(asked: Fields) -> Fields:
    _refuse_unheard(asked)
    messages = required(asked, "messages", list, "")
    if not messages:
        raise InvalidRequest("'messages' is empty", param="messages")  # Ollama would only load the model
    fields: Fields = {"messages": ollama_messages.translate(messages)} | _tools(asked) | _format(asked)
    if optional(asked, "logprobs", bool):
        fields["logprobs"] = True
    if (top := optional(asked, "top_logprobs", int)) is not None:
        fields["top_logprobs"] = top
    return fields


def _generate(asked: Fields) -> Fields:
    """openai/openai.go FromCompleteRequest, without its silences."""
    _refuse_unheard(asked)
    fields: Fields = {"prompt": _prompt(asked.get("prompt"))} | _format(asked)
    if (suffix := optional(asked, "suffix", str)) is not None:
        fields["suffix"] = suffix
    if optional(asked, "raw", bool):
        fields["raw"] = True
    if (top := optional(asked, "logprobs", int)) is not None:
        fields |= {"logprobs": True, "top_logprobs": top}
    return fields


def _prompt(prompt: object) -> str:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]  # as LangChain's OpenAI class sends a single one
    if isinstance(prompt, list) and len(prompt) > 1 and all(isinstance(p, str) for p in prompt):
        raise Unsupported("Ollama takes one prompt a request: send them one by one", param="prompt")
    if isinstance(prompt, list):
        raise InvalidRequest("'prompt' must be text; Ollama takes no token ids", param="prompt")
    return "" if prompt is None else str(typed(str, prompt, "prompt"))


def _embed(asked: Fields) -> Fields:
    encoding = optional(asked, "encoding_format", str)
    if encoding not in (None, "float", "base64"):
        raise wrong("encoding_format", "'float' or 'base64'")
    fields: Fields = {"input": _input(asked.get("input"))}
    if (dimensions := optional(asked, "dimensions", int)) is not None:
        if dimensions < 1:
            raise wrong("dimensions", "at least 1")
        fields["dimensions"] = dimensions
    return fields


def _input(given: object) -> object:
    if given is None:
        raise InvalidRequest("'input' is missing", param="input")
    if given in ("", []):
        raise InvalidRequest("'input' is empty", param="input")
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        return given
    if isinstance(given, list) and _is_token_ids(given):
        raise InvalidRequest(
            "'input' holds token ids, and Ollama embeds text only: "
            "send strings (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
            param="input",
        )
    return typed(str, given, "input") if not isinstance(given, list) else all_of(str, given, "input")


def _is_token_ids(given: list[Any]) -> bool:
    flat = [token for item in given for token in (item if isinstance(item, list) else [item])]
    return bool(flat) and all(isinstance(token, int) and not isinstance(token, bool) for token in flat)


def _refuse_unheard(asked: Fields) -> None:
    """What Ollama passes over in silence although the answer depends on it."""
    for key in ("n", "best_of"):
        choices = optional(asked, key, int)
        if choices is not None and choices < 1:
            raise wrong(key, "at least 1")
        if choices is not None and choices > 1:
            raise Unsupported(f"Ollama gives one choice a request, {key} is {choices}", param=key)
    if optional(asked, "echo", bool):
        raise Unsupported("Ollama does not repeat the prompt in its answer (echo)", param="echo")
    if "audio" in (optional(asked, "modalities", list) or ()):
        raise Unsupported("Ollama answers in text, not in audio", param="modalities")
    if asked.get("functions"):
        raise Unsupported("'functions' is an older form that is not translated: send 'tools'", param="functions")


# --- tools, formats, settings ---------------------------------------------------------------------


def _tools(asked: Fields) -> Fields:
    choice = asked.get("tool_choice")
    if choice not in (None, "auto", "none"):
        if choice != "required" and not isinstance(choice, dict):
            raise wrong("tool_choice", "'auto', 'none', 'required' or an object")
        raise Unsupported(
            "Ollama cannot be made to call a tool: leave tool_choice at 'auto', "
            "or ask for structured output with response_format json_schema",
            param="tool_choice",
        )
    tools = optional(asked, "tools", list) or []
    for n, tool in enumerate(all_of(dict, tools, "tools")):
        if tool.get("type", "function") != "function":
            raise Unsupported(f"Ollama knows tools of type 'function' only, tools[{n}] is another", param="tools")
        required(required(tool, "function", dict, f"tools[{n}]."), "name", str, f"tools[{n}].function.")
    return {"tools": tools} if tools and choice != "none" else {}


def _format(asked: Fields) -> Fields:
    schema = wanted_schema(asked)
    return {} if schema is None else {"format": schema or "json"}


def _settings(asked: Fields, defaults: Mapping[str, Any], endpoint: Endpoint) -> Fields:
    """``options`` and what stands beside it: the operator's defaults, the client's explicit values over them.

    Except for what reloads the model (`RUNNER_OPTIONS`, ``shift``): there an operator who set it wins, or two
    clients could keep a server loading the same model in turns.
    """
    theirs = {k: v for k, v in defaults.items() if v is not None}
    ours = _top_level(asked)
    fixed: Fields = {k: theirs[k] for k in (*RUNNER_OPTIONS, "shift") if k in theirs}
    options = {} if endpoint is Endpoint.EMBEDDINGS else _sampling(asked)
    merged: Fields = {**theirs, **options, **_client_options(asked), **ours, **fixed}
    fields: Fields = {k: merged.pop(k) for k in _TOP_LEVEL if k in merged}
    if endpoint is Endpoint.EMBEDDINGS:
        fields = {k: v for k, v in fields.items() if k in ("keep_alive", "truncate")}
    if merged:
        fields["options"] = merged
    return fields


def _sampling(asked: Fields) -> Fields:
    given = ((key, name) for key, name in _SAMPLING.items() if asked.get(key) is not None)
    return {name: _option(name, asked[key], key) for key, name in given}


def _client_options(asked: Fields) -> Fields:
    """The client's own ``options``; Ollama's settings beside them are no options, wherever they are given."""
    given = optional(asked, "options", dict) or {}
    return {k: _option(k, v, f"options.{k}") for k, v in given.items() if v is not None and k not in _TOP_LEVEL}


def _option(name: str, value: object, path: str) -> Any:
    if name == "stop":
        return [value] if isinstance(value, str) else all_of(str, _stops(value, path), path)
    kind = _OPTION_KINDS.get(name)
    return value if kind is None else typed(kind, value, path)


def _stops(value: object, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong(path, "a string or an array of strings")
    return value


def _top_level(asked: Fields) -> Fields:
    ours: Fields = {}
    for key in ("truncate", "shift"):
        if (value := optional(asked, key, bool)) is not None:
            ours[key] = value
    if (alive := asked.get("keep_alive")) is not None:
        ours["keep_alive"] = alive if isinstance(alive, str) else typed(float, alive, "keep_alive")
    if (think := _think(asked)) is not None:
        ours["think"] = think
    return ours


def _think(asked: Fields) -> bool | str | None:
    """Only where the client asks: a model that does not think answers 400 to anything but false."""
    think = asked.get("think")
    if think is not None:
        if isinstance(think, bool) or (isinstance(think, str) and think in ("low", "medium", "high", "max")):
            return think
        raise wrong("think", "true, false, 'low', 'medium', 'high' or 'max'")
    reasoning: Any = asked.get("reasoning")  # OpenRouter's form, which Open WebUI sends; first, as Ollama has it
    nested = isinstance(reasoning, dict) and reasoning.get("effort") is not None
    path = "reasoning.effort" if nested else "reasoning_effort"
    effort = reasoning["effort"] if nested else asked.get("reasoning_effort")
    if effort is None or effort == "":
        return None
    if typed(str, effort, path) not in _THINK:
        raise wrong(path, " or ".join(repr(e) for e in _THINK))
    return _THINK[effort]
