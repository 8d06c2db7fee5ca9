"""Translates OpenAI's requests to Gemini's (ai.google.dev/api/generate-content and /api/embeddings).

The caller's mistakes are refused here with their path in ``param``; so are fields that would change the answer and
have no equivalent in Gemini's API. Other fields without one (``user``, ``logit_bias``, ``metadata``, ...) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Final

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.reasoning import wanted_reasoning
from manallm_proxy.openai.request_fields import (
    NO_OBJECT,
    Fields,
    all_of,
    optional,
    required,
    texts_of,
    typed,
    wanted_schema,
    wanted_vectors,
    wrong,
)
from manallm_proxy.openai.short_names import short_name
from manallm_proxy.openai.stand_ins import StandIns, read_texts
from manallm_proxy.openai.tool_choice import tool_choice
from manallm_proxy.providers.gemini.google_fields import google_fields
from manallm_proxy.providers.gemini.messages import ENCODED_SIGNATURE, Conversation
from manallm_proxy.providers.mending.history import ANY_SIGNATURE
from manallm_proxy.providers.wire import Request

_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]*", re.ASCII)
"""Strict, since the model becomes part of a URL that is requested with our key, and must not redirect it."""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,63}", re.ASCII)
"""Names of functions that Gemini takes."""
_GENERATION: Final = re.compile(r"(?:.*/)?gemini-(\d+)(?:\.(\d+))?\b")

_SETTINGS: Final[dict[str, tuple[str, type]]] = {
    "temperature": ("temperature", float),
    "top_p": ("topP", float),
    "top_k": ("topK", float),
    "seed": ("seed", int),
    "presence_penalty": ("presencePenalty", float),
    "frequency_penalty": ("frequencyPenalty", float),
    "n": ("candidateCount", int),
    "max_tokens": ("maxOutputTokens", int),
    "max_completion_tokens": ("maxOutputTokens", int),  # after max_tokens, which it replaced: the later one wins
}
_LEVELS: Final = {
    "none": "MINIMAL",  # thinking cannot be disabled in Gemini 3
    "minimal": "MINIMAL",
    "low": "LOW",
    "medium": "MEDIUM",
    "high": "HIGH",
    "xhigh": "XHIGH",
    "max": "XHIGH",
}
_BUDGETS: Final = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
"""Tokens for Gemini 2.5, as Google's own OpenAI endpoint has them; 24576 is the most that all of its models take."""
_LEAST_PRO_BUDGET: Final = 128
"""Thinking cannot be disabled in Gemini 2.5 Pro either, and it refuses a budget below this."""


SIGNATURES, ANY_SIGNATURE_AS_IT_IS = "signatures", "any_signature"
"""In a call's ``denied``: what the target has refused, the signatures of its history, and what stands in for them."""
THINKING: Final = "thinking"
"""Likewise: to think otherwise than it does by itself."""


def build(call: Call, entry: Entry) -> Request:
    """The POST for one target. Raises InvalidRequest or Unsupported, with the offending field in ``param``."""
    (asked, texts), model = read_texts(call.body), _model(entry)
    match call.endpoint:
        case Endpoint.CHAT:
            method, fields = _generates(call), _chat(asked, model, call, texts)
        case Endpoint.COMPLETIONS:
            method, fields = _generates(call), _completion(asked)
        case Endpoint.EMBEDDINGS:
            method, fields = "batchEmbedContents", _embedding(asked, model)
    try:
        return Request(f"{model}:{method}", texts.encode(fields, call.is_large))
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


def _generates(call: Call) -> str:
    return "streamGenerateContent?alt=sse" if call.summary.stream else "generateContent"


def _chat(asked: Fields, model: str, call: Call, texts: StandIns) -> Fields:
    _reject_ignored_fields(asked)
    is_foreign = SIGNATURES in call.denied
    talk = Conversation.read(
        required(asked, "messages", list, ""),
        signed=is_foreign or _is_third(model),
        is_foreign=is_foreign,
        stand_in=ENCODED_SIGNATURE if ANY_SIGNATURE_AS_IT_IS in call.denied else ANY_SIGNATURE,
        object_bytes=texts.object_bytes,
        name=partial(_name, call.names),
    )
    if talk.has_broken_arguments:
        call.remarks.append(NO_OBJECT)
    fields: Fields = {"contents": talk.contents}
    if talk.instruction is not None:
        fields["systemInstruction"] = {"role": "user", "parts": [{"text": talk.instruction}]}
    fields |= _tools(asked, talk.name)
    google = google_fields(asked)
    settings = _settings(asked) | _format(asked) | _logprobs(asked) | _answer_kinds(asked)
    if thinking := google.thinking or (THINKING not in call.denied and _thinking(asked, model)):
        settings["thinkingConfig"] = thinking
    return fields | google.top | _config(settings)


def _completion(asked: Fields) -> Fields:
    _reject_ignored_fields(asked)
    _reject_legacy_fields(asked)
    contents = [{"role": "user", "parts": [{"text": _prompt(asked.get("prompt"))}]}]
    return {"contents": contents} | _config(_settings(asked))


def _config(settings: Fields) -> Fields:
    return {"generationConfig": settings} if settings else {}


def _embedding(asked: Fields, model: str) -> Fields:
    texts, dimensions = wanted_vectors(asked, "Gemini")
    each: Fields = {"model": model} | ({} if dimensions is None else {"outputDimensionality": dimensions})
    texts = [texts] if isinstance(texts, str) else texts
    return {"requests": [{**each, "content": {"parts": [{"text": text}]}} for text in texts]}


def _model(entry: Entry) -> str:
    """The model as a path below the API's version: ``models/gemini-2.5-flash``."""
    model = entry.target.model
    if not _MODEL.fullmatch(model) or ".." in model:
        raise InvalidRequest("this is no name of a Gemini model", param="model")
    return model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"


def _version(model: str) -> tuple[int, int]:
    """``"gemini-2.5-flash"`` -> (2, 5). (0, 0) for names without a version, such as Gemma's."""
    match = _GENERATION.match(model)
    return (int(match[1]), int(match[2] or 0)) if match else (0, 0)


def _is_third(model: str) -> bool:
    """Whether it is of the third generation or later, as those are that Google names ``-latest`` without a number."""
    version = _version(model)
    return version >= (3, 0) or (version == (0, 0) and model.endswith("-latest"))


# --- content --------------------------------------------------------------------------------------


def _prompt(prompt: object) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(isinstance(p, str | list) for p in prompt):
        raise Unsupported("Gemini takes one prompt a request: send them one by one", param="prompt")
    if isinstance(prompt, int) or (prompt and isinstance(prompt, list)):
        raise Unsupported("Gemini takes no token ids: send the prompt as a string", param="prompt")
    if not prompt:
        raise InvalidRequest("'prompt' is empty", param="prompt")
    return str(typed(str, prompt, "prompt"))


def _reject_ignored_fields(asked: Fields) -> None:
    """Raises Unsupported for fields that would be silently dropped although the answer depends on them."""
    if set(_modalities(asked)) - {"text", "image"}:
        raise Unsupported("Gemini's answers are translated if they are text or images", param="modalities")
    if asked.get("web_search_options") is not None:
        raise Unsupported("web search is not translated for Gemini", param="web_search_options")
    if asked.get("functions"):
        raise Unsupported("'functions' is an older form that is not translated: send 'tools'", param="functions")


def _reject_legacy_fields(asked: Fields) -> None:
    for key in ("suffix", "logprobs", "echo"):
        if asked.get(key) not in (None, False, ""):
            raise Unsupported(f"Gemini has nothing like '{key}' for legacy completions", param=key)
    if (optional(asked, "best_of", int) or 1) > 1:
        raise Unsupported("Gemini gives all candidates or one, not the best of several", param="best_of")


# --- settings -------------------------------------------------------------------------------------


def _settings(asked: Fields) -> Fields:
    given = ((key, *to) for key, to in _SETTINGS.items() if asked.get(key) is not None)
    fields: Fields = {name: typed(kind, asked[key], key) for key, name, kind in given}
    if fields.get("candidateCount", 1) < 1:
        raise wrong("n", "at least 1")
    stop = asked.get("stop")
    if stop:
        fields["stopSequences"] = [stop] if isinstance(stop, str) else texts_of(typed(list, stop, "stop"), "stop")
    return fields


def _modalities(asked: Fields) -> list[str]:
    return texts_of(optional(asked, "modalities", list) or [], "modalities")


def _answer_kinds(asked: Fields) -> Fields:
    """``modalities``, where OpenRouter's clients ask for images. Models that make none refuse the field."""
    kinds = _modalities(asked)
    return {"responseModalities": [kind.upper() for kind in kinds]} if "image" in kinds else {}


def _logprobs(asked: Fields) -> Fields:
    if not optional(asked, "logprobs", bool):
        return {}
    top = optional(asked, "top_logprobs", int)
    return {"responseLogprobs": True} | ({} if top is None else {"logprobs": top})


def _thinking(asked: Fields, model: str) -> Fields:
    """``thinkingConfig``, only if the client sets an effort: models that do not think refuse it."""
    wanted = wanted_reasoning(asked)
    effort = wanted.effort
    if effort is None and not wanted.is_on:
        return {}
    if effort is not None and effort not in _LEVELS:
        raise wrong(wanted.path, " or ".join(repr(known) for known in _LEVELS))
    config: Fields = {"includeThoughts": effort != "none" and not wanted.is_hidden}
    version = _version(model)
    has_levels = _is_third(model)
    if not has_levels and version < (2, 5):
        return {}
    if effort is not None and has_levels:
        level = _LEVELS[effort]
        config["thinkingLevel"] = "LOW" if level == "MINIMAL" and "pro" in model else level  # the lowest level of Pro
    elif effort is not None:
        budget = _BUDGETS[effort] if wanted.budget is None else wanted.budget
        config["thinkingBudget"] = max(budget, _LEAST_PRO_BUDGET if "pro" in model else 0)
    return config


def _format(asked: Fields) -> Fields:
    schema = wanted_schema(asked)
    if schema is None:
        return {}
    return {"responseMimeType": "application/json"} | ({"responseJsonSchema": schema} if schema else {})


_MODES: Final = {"auto": "AUTO", "none": "NONE", "required": "ANY"}


def _name(names: dict[str, str], name: str) -> str:
    """`name`, or one that Gemini takes in place of it, which is noted in `names`: it refuses the whole request for one
    tool's."""
    if not name or _NAME.fullmatch(name):
        return name
    short = short_name(name)
    names[short] = name
    return short


def _tools(asked: Fields, name: Callable[[str], str]) -> Fields:
    tools = all_of(dict, optional(asked, "tools", list) or [], "tools")
    declared = [_declaration(tool, f"tools[{n}].", name) for n, tool in enumerate(tools)]
    choice = tool_choice(asked)
    allowed = choice.allowed(tools)
    if not declared:
        return {}
    names = dict.fromkeys(name(tool["function"]["name"]) for tool in allowed)  # to look one up takes no walk
    fields: Fields = {"tools": [{"functionDeclarations": [each for each in declared if each["name"] in names]}]}
    if choice.mode is not None:
        narrowed = choice.mode == "required" and choice.names is not None
        calling: Fields = {"allowedFunctionNames": [*names]} if narrowed else {}
        fields["toolConfig"] = {"functionCallingConfig": {"mode": _MODES[choice.mode], **calling}}
    return fields


def _declaration(tool: Fields, path: str, name: Callable[[str], str]) -> Fields:
    if tool.get("type", "function") != "function":
        raise Unsupported(f"Gemini knows tools of type 'function' only, {path[:-1]} is another", param="tools")
    function = required(tool, "function", dict, path)
    path += "function."
    declared: Fields = {"name": name(required(function, "name", str, path))}
    if (description := optional(function, "description", str, path)) is not None:
        declared["description"] = description
    if (schema := optional(function, "parameters", dict, path)) is not None:
        declared["parametersJsonSchema"] = schema
    return declared
