"""OpenAI's requests in google-genai's words (google-genai 3.4 types.GenerateContentConfig; wire.md D.2, D.5).

What the caller got wrong is refused here with its path in ``param``; what would change the answer and has no
word in Gemini's API is refused as well. The rest that OpenAI knows and Gemini does not (``user``, ``logit_bias``,
``metadata``, ...) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from attrs import field, frozen
from google.genai import types
from pydantic import ValidationError

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.contract.targets import Entry
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
from manallm_proxy.providers.gemini.messages import Conversation

_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]*", re.ASCII)
"""It becomes part of a path under our key: nothing that would lead that path elsewhere."""
_GENERATION: Final = re.compile(r"(?:.*/)?gemini-(\d+)(?:\.(\d+))?\b")

_SETTINGS: Final[dict[str, tuple[str, type]]] = {
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", float),
    "seed": ("seed", int),
    "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float),
    "n": ("candidate_count", int),
    "max_tokens": ("max_output_tokens", int),
    "max_completion_tokens": ("max_output_tokens", int),  # behind max_tokens, which it replaced: the later one wins
}
_LEVELS: Final = {
    "none": types.ThinkingLevel.MINIMAL,  # Gemini 3 cannot be told not to think
    "minimal": types.ThinkingLevel.MINIMAL,
    "low": types.ThinkingLevel.LOW,
    "medium": types.ThinkingLevel.MEDIUM,
    "high": types.ThinkingLevel.HIGH,
    "xhigh": types.ThinkingLevel.XHIGH,
    "max": types.ThinkingLevel.XHIGH,
}
_BUDGETS: Final = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
"""Tokens for Gemini 2.5, as Google's own OpenAI endpoint has them; 24576 is the most that all of its models take."""
_LEAST_PRO_BUDGET: Final = 128
"""Gemini 2.5 Pro cannot be told not to think either, and refuses a budget below this."""


@frozen
class Generation:
    """What ``generate_content`` is called with."""

    model: str
    contents: list[types.Content] = field(repr=False)
    config: types.GenerateContentConfig = field(repr=False)


@frozen
class Embedding:
    """What ``embed_content`` is called with, and how the vectors leave."""

    model: str
    contents: list[types.Content] = field(repr=False)
    config: types.EmbedContentConfig = field(repr=False)
    is_cut: bool
    """Shorter vectors than the model's own, of a model that does not bring those to unit length."""
    as_base64: bool


def generation(call: Call, entry: Entry) -> Generation:
    """InvalidRequest and Unsupported name the offending field in ``param``, and hold none of its values."""
    asked, model = decoded(call.body), _model(entry)
    _refuse_unsaid(asked)
    with _checked():
        if call.endpoint is Endpoint.COMPLETIONS:
            _refuse_legacy(asked)
            contents, fields = [_one_text(_prompt(asked.get("prompt")), "user")], _settings(asked)
        else:
            talk = Conversation.read(required(asked, "messages", list, ""), signed=_version(model) >= (3, 0))
            fields = {"system_instruction": talk.instruction, **_settings(asked), **_chat_settings(asked, model)}
            contents = talk.contents
        return Generation(model, contents, types.GenerateContentConfig(**_ONE_CALL, **fields))


_ONE_CALL: Final[Fields] = {
    "automatic_function_calling": types.AutomaticFunctionCallingConfig(disable=True),
    "automatic_continuation": False,
}
"""One request upstream for one of ours: the SDK would otherwise run functions and follow continuations by itself."""


def embedding(call: Call, entry: Entry) -> Embedding:
    """The same for ``/v1/embeddings``."""
    asked, model = decoded(call.body), _model(entry)
    encoding = optional(asked, "encoding_format", str)
    if encoding not in (None, "float", "base64"):
        raise wrong("encoding_format", "'float' or 'base64'")
    dimensions = optional(asked, "dimensions", int)
    if dimensions is not None and dimensions < 1:
        raise wrong("dimensions", "at least 1")
    with _checked():
        # a content for each: the SDK folds a list of strings into one vector for most models (wire.md D.5)
        contents = [_one_text(text) for text in _inputs(asked.get("input"))]
        config = types.EmbedContentConfig(output_dimensionality=dimensions)
    is_cut = dimensions is not None and model.endswith("gemini-embedding-001")
    return Embedding(model, contents, config, is_cut, as_base64=encoding == "base64")


@contextmanager
def _checked() -> Iterator[None]:
    """The SDK's own validation, pydantic's, in our words: where, never what."""
    try:
        yield
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except ValueError as error:
        found = error.errors() if isinstance(error, ValidationError) else []
        where = ".".join(str(step) for step in found[0]["loc"])[:80] if found else "the request"
        raise InvalidRequest(f"Gemini's API cannot be told this: {where} is not valid") from None


def _model(entry: Entry) -> str:
    model = entry.target.model
    if not _MODEL.fullmatch(model) or ".." in model:
        raise InvalidRequest("this is no name of a Gemini model", param="model")
    return model


def _version(model: str) -> tuple[int, int]:
    """``"gemini-2.5-flash"`` -> (2, 5). (0, 0) for names without a version, such as Gemma's."""
    match = _GENERATION.match(model)
    return (int(match[1]), int(match[2] or 0)) if match else (0, 0)


def _one_text(text: str, role: str | None = None) -> types.Content:
    return types.Content(role=role, parts=[types.Part(text=text)])


# --- what is said ---------------------------------------------------------------------------------


def _prompt(prompt: object) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(isinstance(p, str | list) for p in prompt):
        raise Unsupported("Gemini takes one prompt a request: send them one by one", param="prompt")
    if isinstance(prompt, list | int):
        raise Unsupported("Gemini takes no token ids: send the prompt as a string", param="prompt")
    if not prompt:
        raise InvalidRequest("'prompt' is empty", param="prompt")
    return str(typed(str, prompt, "prompt"))


def _inputs(given: object) -> list[str]:
    if given is None:
        raise InvalidRequest("'input' is missing", param="input")
    if given in ("", []):
        raise InvalidRequest("'input' is empty", param="input")
    if not isinstance(given, list):
        return [typed(str, given, "input")]
    if isinstance(given[0], list | int):
        raise InvalidRequest(
            "'input' holds token ids, and Gemini embeds text only: "
            "send strings (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
            param="input",
        )
    return all_of(str, given, "input")


def _refuse_unsaid(asked: Fields) -> None:
    """What Gemini would pass over in silence although the answer depends on it."""
    if "audio" in (optional(asked, "modalities", list) or ()):
        raise Unsupported("audio answers are not translated for Gemini: leave modalities at text", param="modalities")
    if asked.get("web_search_options") is not None:
        raise Unsupported("web search is not translated for Gemini", param="web_search_options")
    if asked.get("functions"):
        raise Unsupported("'functions' is an older form that is not translated: send 'tools'", param="functions")


def _refuse_legacy(asked: Fields) -> None:
    for key in ("suffix", "logprobs", "echo"):
        if asked.get(key) not in (None, False, ""):
            raise Unsupported(f"Gemini has nothing like '{key}' for legacy completions", param=key)
    if (optional(asked, "best_of", int) or 1) > 1:
        raise Unsupported("Gemini gives all candidates or one, not the best of several", param="best_of")


# --- settings -------------------------------------------------------------------------------------


def _settings(asked: Fields) -> Fields:
    given = ((key, *to) for key, to in _SETTINGS.items() if asked.get(key) is not None)
    fields: Fields = {name: typed(kind, asked[key], key) for key, name, kind in given}
    if fields.get("candidate_count", 1) < 1:
        raise wrong("n", "at least 1")
    stop = asked.get("stop")
    if stop:
        fields["stop_sequences"] = [stop] if isinstance(stop, str) else all_of(str, typed(list, stop, "stop"), "stop")
    return fields


def _chat_settings(asked: Fields, model: str) -> Fields:
    fields = _tools(asked) | _format(asked) | _thinking(asked, model)
    if optional(asked, "logprobs", bool):
        fields |= {"response_logprobs": True, "logprobs": optional(asked, "top_logprobs", int)}
    return fields


def _thinking(asked: Fields, model: str) -> Fields:
    """Only where the client asks: models that do not think refuse to be told how much."""
    effort = optional(asked, "reasoning_effort", str)
    if effort is None:
        return {}
    if effort not in _LEVELS:
        raise wrong("reasoning_effort", " or ".join(repr(known) for known in _LEVELS))
    config = types.ThinkingConfig(include_thoughts=effort != "none")
    version = _version(model)
    if version >= (3, 0) or model.endswith("-latest"):
        config.thinking_level = _LEVELS[effort]
        if config.thinking_level is types.ThinkingLevel.MINIMAL and "pro" in model:
            config.thinking_level = types.ThinkingLevel.LOW  # the least that Pro models know
    elif version >= (2, 5):
        config.thinking_budget = max(_BUDGETS[effort], _LEAST_PRO_BUDGET if "pro" in model else 0)
    else:
        return {}
    return {"thinking_config": config}


def _format(asked: Fields) -> Fields:
    schema = wanted_schema(asked)
    if schema is None:
        return {}
    return {"response_mime_type": "application/json"} | ({"response_json_schema": schema} if schema else {})


def _tools(asked: Fields) -> Fields:
    tools = all_of(dict, optional(asked, "tools", list) or [], "tools")
    declared = [_declaration(tool, f"tools[{n}].") for n, tool in enumerate(tools)]
    mode, names = _choice(asked.get("tool_choice"))
    if not declared:
        if mode == "ANY":
            raise InvalidRequest("'tool_choice' asks for a tool, and 'tools' has none", param="tool_choice")
        return {}
    if names is not None:
        declared = [tool for tool in declared if tool.name in names]
        if not declared:
            raise InvalidRequest("'tool_choice' names no tool that is in 'tools'", param="tool_choice")
    calling = types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode(mode)) if mode else None
    if calling is not None and mode == "ANY" and names is not None:
        calling.allowed_function_names = [str(tool.name) for tool in declared]
    return {
        "tools": [types.Tool(function_declarations=declared)],
        "tool_config": types.ToolConfig(function_calling_config=calling) if calling else None,
    }


def _declaration(tool: Fields, path: str) -> types.FunctionDeclaration:
    if tool.get("type", "function") != "function":
        raise Unsupported(f"Gemini knows tools of type 'function' only, {path[:-1]} is another", param="tools")
    function = required(tool, "function", dict, path)
    path += "function."
    return types.FunctionDeclaration(
        name=required(function, "name", str, path),
        description=optional(function, "description", str, path),
        parameters_json_schema=optional(function, "parameters", dict, path),
    )


_MODES: Final = {"auto": "AUTO", "none": "NONE", "required": "ANY"}


def _choice(choice: Any) -> tuple[str | None, set[str] | None]:
    """``tool_choice`` as Gemini's mode, and the names that it narrows the tools to."""
    if choice is None:
        return None, None
    if isinstance(choice, str) and choice in _MODES:
        return _MODES[choice], None
    if isinstance(choice, dict):
        if choice.get("type") == "function":
            return "ANY", {_name_in(choice, "tool_choice.")}
        if choice.get("type") == "allowed_tools":
            allowed = required(choice, "allowed_tools", dict, "tool_choice.")
            path = "tool_choice.allowed_tools.tools"
            rows = all_of(dict, required(allowed, "tools", list, "tool_choice.allowed_tools."), path)
            mode = "ANY" if allowed.get("mode") == "required" else "AUTO"
            return mode, {_name_in(row, f"{path}[{n}].") for n, row in enumerate(rows)}
    raise wrong("tool_choice", "'auto', 'none', 'required', a function or allowed_tools")


def _name_in(holder: Fields, path: str) -> str:
    return str(required(required(holder, "function", dict, path), "name", str, path + "function."))
