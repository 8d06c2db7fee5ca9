"""OpenAI's requests in Ollama's native words (ollama api/types.go at v0.33; field map: wire.md B.9).

The native API rather than Ollama's own ``/v1``: there an error in mid stream is lost, a silent client gets
temperature 1.0, and ``num_ctx`` cannot be set (wire.md B.8).

What the caller got wrong is refused here with the path of the mistake, because Ollama answers part of it
with 500, which would blame the model and send the request on to the next target. What Ollama would
ignore although the answer depends on it (``tool_choice: required``, ``n: 2``) is refused as well.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from manallm_proxy.chain import Entry
from manallm_proxy.errors import InvalidRequest, Unsupported
from manallm_proxy.schema import DecodeErrors, decode, encode
from manallm_proxy.upstream import Call, Endpoint
from manallm_proxy.wires import Request

Fields = dict[str, Any]

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
    "max_completion_tokens": "num_predict",  # behind max_tokens, which it replaced: the later one wins
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

_IMAGE_TYPES: Final = ("", "image/jpeg", "image/jpg", "image/png", "image/webp")
_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_NAMES: Final[dict[type, str]] = {
    str: "a string",
    bool: "true or false",
    dict: "an object",
    list: "an array",
    int: "a whole number",
    float: "a number",
}


def build(call: Call, entry: Entry) -> Request:
    """The POST for one target. InvalidRequest and Unsupported name the offending field in ``param``."""
    asked = _decoded(call.body)
    match call.endpoint:
        case Endpoint.CHAT:
            path, fields = "api/chat", _chat(asked)
        case Endpoint.COMPLETIONS:
            path, fields = "api/generate", _generate(asked)
        case Endpoint.EMBEDDINGS:
            path, fields = "api/embed", _embed(asked)
    if call.endpoint is not Endpoint.EMBEDDINGS:
        fields["stream"] = call.head.stream  # Ollama's default is true
    fields |= _settings(asked, entry.options, call.endpoint)
    try:
        return Request(path, encode({"model": entry.target.model, **fields}))
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


def _decoded(body: bytes) -> Fields:
    try:
        asked = decode(body)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except DecodeErrors:
        raise InvalidRequest("the body is not valid JSON") from None
    if not isinstance(asked, dict):
        raise InvalidRequest("the body must be a JSON object")
    return asked


# --- reading what the client sent -----------------------------------------------------------------


def _wrong(path: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"'{path}' must be {wanted}", param=path)


def _as(kind: type, value: object, path: str) -> Any:
    """`value` if it is of `kind`, InvalidRequest otherwise. A truth value is no number, 3.0 is a whole one."""
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise _wrong(path, _NAMES[kind])
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _wrong(path, "a number of at most 64 bits")
    return value


def _get(of: Fields, key: str, kind: type, path: str = "") -> Any:
    """The member `key`, of `kind`; None where it is missing or null. `path` leads to `of`, with its dot."""
    value = of.get(key)
    return None if value is None else _as(kind, value, path + key)


def _must(of: Fields, key: str, kind: type, path: str) -> Any:
    """The same for a member that cannot be missing."""
    value = _get(of, key, kind, path)
    if value is None:
        raise InvalidRequest(f"'{path}{key}' is missing", param=path + key)
    return value


# --- the three endpoints --------------------------------------------------------------------------


def _chat(asked: Fields) -> Fields:
    _refuse_unheard(asked)
    messages = _must(asked, "messages", list, "")
    if not messages:
        raise InvalidRequest("'messages' is empty", param="messages")  # Ollama would only load the model
    fields: Fields = {"messages": _messages(messages)} | _tools(asked) | _format(asked)
    if _get(asked, "logprobs", bool):
        fields["logprobs"] = True
    if (top := _get(asked, "top_logprobs", int)) is not None:
        fields["top_logprobs"] = top
    return fields


def _generate(asked: Fields) -> Fields:
    """openai/openai.go FromCompleteRequest, without its silences."""
    _refuse_unheard(asked)
    fields: Fields = {"prompt": _prompt(asked.get("prompt"))} | _format(asked)
    if (suffix := _get(asked, "suffix", str)) is not None:
        fields["suffix"] = suffix
    if (top := _get(asked, "logprobs", int)) is not None:
        fields |= {"logprobs": True, "top_logprobs": top}
    return fields


def _prompt(prompt: object) -> str:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]  # as LangChain's OpenAI class sends a single one
    if isinstance(prompt, list) and len(prompt) > 1 and all(isinstance(p, str) for p in prompt):
        raise Unsupported("Ollama takes one prompt a request: send them one by one", param="prompt")
    if isinstance(prompt, list):
        raise InvalidRequest("'prompt' must be text; Ollama takes no token ids", param="prompt")
    return "" if prompt is None else str(_as(str, prompt, "prompt"))


def _embed(asked: Fields) -> Fields:
    encoding = _get(asked, "encoding_format", str)
    if encoding not in (None, "float", "base64"):
        raise _wrong("encoding_format", "'float' or 'base64'")
    fields: Fields = {"input": _input(asked.get("input"))}
    if (dimensions := _get(asked, "dimensions", int)) is not None:
        if dimensions < 1:
            raise _wrong("dimensions", "at least 1")
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
    return _as(str, given, "input") if not isinstance(given, list) else _all_strings(given, "input")


def _is_token_ids(given: list[Any]) -> bool:
    flat = [token for item in given for token in (item if isinstance(item, list) else [item])]
    return bool(flat) and all(isinstance(token, int) and not isinstance(token, bool) for token in flat)


def _all_strings(values: list[Any], path: str) -> list[str]:
    return [_as(str, value, f"{path}[{n}]") for n, value in enumerate(values)]


def _refuse_unheard(asked: Fields) -> None:
    """What Ollama passes over in silence although the answer depends on it."""
    for key in ("n", "best_of"):
        choices = _get(asked, key, int)
        if choices is not None and choices < 1:
            raise _wrong(key, "at least 1")
        if choices is not None and choices > 1:
            raise Unsupported(f"Ollama gives one choice a request, {key} is {choices}", param=key)
    if _get(asked, "echo", bool):
        raise Unsupported("Ollama does not repeat the prompt in its answer (echo)", param="echo")
    if "audio" in (_get(asked, "modalities", list) or ()):
        raise Unsupported("Ollama answers in text, not in audio", param="modalities")
    if asked.get("functions"):
        raise Unsupported("'functions' is an older form that is not translated: send 'tools'", param="functions")


# --- messages -------------------------------------------------------------------------------------


def _messages(messages: list[Any]) -> list[Fields]:
    called: dict[str, str] = {}  # id of a tool call -> its name; of a repeated id the last one counts
    return [_message(_as(dict, m, f"messages[{i}]"), f"messages[{i}].", called) for i, m in enumerate(messages)]


def _message(message: Fields, path: str, called: dict[str, str]) -> Fields:
    """One message; `called` learns the names of its tool calls and gives them to the results that follow."""
    spoken = _must(message, "role", str, path)
    role = _ROLES.get(spoken)
    if role is None:
        raise _wrong(path + "role", " or ".join(repr(r) for r in _ROLES))
    content = message.get("content")
    if content is None and role != "assistant":
        raise InvalidRequest(f"'{path}content' is missing", param=path + "content")
    said: Fields = {"role": role} | _content("" if content is None else content, path + "content")
    if role == "tool":
        said |= _result_of(message, path, called)
    if role == "assistant":
        thought = message.get("reasoning_content") or message.get("reasoning")
        if isinstance(thought, str):
            said["thinking"] = thought
        if calls := _get(message, "tool_calls", list, path):
            said["tool_calls"] = [_tool_call(c, f"{path}tool_calls[{n}]", called) for n, c in enumerate(calls)]
    return said


def _result_of(message: Fields, path: str, called: dict[str, str]) -> Fields:
    id_ = _get(message, "tool_call_id", str, path)
    name = _get(message, "name", str, path) or called.get(id_ or "")
    if id_ is None and not name:
        raise InvalidRequest(f"'{path}tool_call_id' is missing", param=path + "tool_call_id")
    return {k: v for k, v in (("tool_name", name), ("tool_call_id", id_)) if v}


def _tool_call(call: object, path: str, called: dict[str, str]) -> Fields:
    call = _as(dict, call, path)
    function = _must(call, "function", dict, path + ".")
    name = _must(function, "name", str, path + ".function.")
    arguments = _arguments(function.get("arguments"), path + ".function.arguments")
    said: Fields = {"function": {"name": name, "arguments": arguments}}
    if id_ := _get(call, "id", str, path + "."):
        called[id_] = name
        said["id"] = id_
    return said


def _arguments(text: object, path: str) -> object:
    """OpenAI's JSON text -> the object that Ollama wants, its bytes as they are. Nothing at all means ``{}``."""
    if text is None or text == "" or isinstance(text, dict):
        return text or {}
    raw = _as(str, text, path).encode()
    try:
        if isinstance(decode(raw), dict):
            return msgspec.Raw(raw)
    except DecodeErrors:
        pass
    raise _wrong(path, "a JSON object in a string")


def _content(content: object, path: str) -> Fields:
    """A string, or parts: their texts in one string, one line each; images apart (base64 without prefix)."""
    if isinstance(content, str):
        return {"content": content}
    if not isinstance(content, list):
        raise _wrong(path, "a string or an array of parts")
    texts: list[str] = []
    images: list[str] = []
    for n, part in enumerate(content):
        at = f"{path}[{n}]"
        part = _as(dict, part, at)
        kind = _must(part, "type", str, at + ".")
        if kind in ("text", "refusal"):
            texts.append(_must(part, kind, str, at + "."))
        elif kind == "image_url":
            images.append(_image(part, at))
        else:
            raise Unsupported(f"Ollama takes text and images, and {at} is of type '{kind[:40]}'", param="messages")
    return {"content": "\n".join(texts)} | ({"images": images} if images else {})


def _image(part: Fields, at: str) -> str:
    holder = part.get("image_url")
    path = at + ".image_url" if isinstance(holder, str) else at + ".image_url.url"
    url = holder if isinstance(holder, str) else _must(_must(part, "image_url", dict, at + "."), "url", str, path[:-3])
    head, comma, data = url.partition(",")
    scheme = head[:8].lower()
    if scheme.startswith(("http:", "https:")):
        raise Unsupported(f"Ollama does not fetch images: send {at} as a base64 data URI", param="messages")
    media, *settings = head[5:].lower().split(";")
    if not (scheme.startswith("data:") and comma and "base64" in settings):
        raise _wrong(path, "a base64 data URI")
    if media not in _IMAGE_TYPES:
        raise Unsupported(f"Ollama reads jpeg, png and webp, and {at} is '{media[:40]}'", param="messages")
    try:
        binascii.a2b_base64(data, strict_mode=True)
    except ValueError:
        raise _wrong(path, "a data URI with valid base64") from None
    return data


# --- tools, formats, settings ---------------------------------------------------------------------


def _tools(asked: Fields) -> Fields:
    choice = asked.get("tool_choice")
    if choice not in (None, "auto", "none"):
        if choice != "required" and not isinstance(choice, dict):
            raise _wrong("tool_choice", "'auto', 'none', 'required' or an object")
        raise Unsupported(
            "Ollama cannot be made to call a tool: leave tool_choice at 'auto', "
            "or ask for structured output with response_format json_schema",
            param="tool_choice",
        )
    tools = _get(asked, "tools", list) or []
    for n, tool in enumerate(tools):
        tool = _as(dict, tool, f"tools[{n}]")
        if tool.get("type", "function") != "function":
            raise Unsupported(f"Ollama knows tools of type 'function' only, tools[{n}] is another", param="tools")
        _must(_must(tool, "function", dict, f"tools[{n}]."), "name", str, f"tools[{n}].function.")
    return {"tools": tools} if tools and choice != "none" else {}


def _format(asked: Fields) -> Fields:
    wanted = _get(asked, "response_format", dict)
    if wanted is None:
        return {}
    match _must(wanted, "type", str, "response_format."):
        case "text":
            return {}
        case "json_object":
            return {"format": "json"}
        case "json_schema":
            named = _must(wanted, "json_schema", dict, "response_format.")
            return {"format": _must(named, "schema", dict, "response_format.json_schema.")}
    raise _wrong("response_format.type", "'text', 'json_object' or 'json_schema'")


def _settings(asked: Fields, defaults: Mapping[str, Any], endpoint: Endpoint) -> Fields:
    """``options`` and what stands beside it: the operator's defaults, the client's explicit values over them.

    Except for what reloads the model (`RUNNER_OPTIONS`, ``shift``): there an operator who set it wins, or two
    clients could keep a server loading the same model in turns.
    """
    theirs = {k: v for k, v in defaults.items() if v is not None}
    ours = _top_level(asked)
    fixed = {k: theirs[k] for k in (*RUNNER_OPTIONS, "shift") if k in theirs}
    options = _sampling(asked) if endpoint is not Endpoint.EMBEDDINGS else {}
    merged = {**theirs, **options, **_client_options(asked), **ours, **fixed}
    fields = {k: merged.pop(k) for k in _TOP_LEVEL if k in merged}
    if endpoint is Endpoint.EMBEDDINGS:
        fields = {k: v for k, v in fields.items() if k in ("keep_alive", "truncate")}
    return fields | ({"options": merged} if merged else {})


def _sampling(asked: Fields) -> Fields:
    return {name: _option(name, asked[key], key) for key, name in _SAMPLING.items() if asked.get(key) is not None}


def _client_options(asked: Fields) -> Fields:
    """The client's own ``options``; Ollama's settings beside them are no options, wherever they are given."""
    given = _get(asked, "options", dict) or {}
    return {k: _option(k, v, f"options.{k}") for k, v in given.items() if v is not None and k not in _TOP_LEVEL}


def _option(name: str, value: object, path: str) -> Any:
    if name == "stop":
        return [value] if isinstance(value, str) else _all_strings(_stops(value, path), path)
    kind = _OPTION_KINDS.get(name)
    return value if kind is None else _as(kind, value, path)


def _stops(value: object, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(path, "a string or an array of strings")
    return value


def _top_level(asked: Fields) -> Fields:
    ours: Fields = {k: v for k in ("truncate", "shift") if (v := _get(asked, k, bool)) is not None}
    if (alive := asked.get("keep_alive")) is not None:
        ours["keep_alive"] = alive if isinstance(alive, str) else _as(float, alive, "keep_alive")
    if (think := _think(asked)) is not None:
        ours["think"] = think
    return ours


def _think(asked: Fields) -> bool | str | None:
    """Only where the client asks: a model that does not think answers 400 to anything but false."""
    think = asked.get("think")
    if think is not None:
        if not isinstance(think, bool) and think not in ("low", "medium", "high", "max"):
            raise _wrong("think", "true, false, 'low', 'medium', 'high' or 'max'")
        return think  # type: ignore[no-any-return]  # narrowed by the line above
    reasoning = asked.get("reasoning")  # OpenRouter's form, which Open WebUI sends; first, as Ollama has it
    nested = isinstance(reasoning, dict) and reasoning.get("effort") is not None
    holder, key, path = (reasoning, "effort", "reasoning.") if nested else (asked, "reasoning_effort", "")
    effort = _get(holder, key, str, path)
    if not effort:
        return None
    if effort not in _THINK:
        raise _wrong(path + key, ", ".join(repr(e) for e in _THINK))
    return _THINK[effort]
