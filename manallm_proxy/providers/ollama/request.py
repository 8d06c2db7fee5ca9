"""Translates OpenAI's requests to Ollama's native API (ollama api/types.go at v0.33).

Ollama's own ``/v1`` is not used: it loses errors in the middle of a stream, takes temperature 1.0 if the client sets
none, and has no ``num_ctx``.

The caller's mistakes are refused here with their path, because Ollama answers some of them with 500, which would
blame the model and send the request on to the next target. Fields that Ollama would ignore although the answer
depends on them (``n: 2``) are refused as well; ``tool_choice: required``, which it ignores too, is enforced by
structured output (`forced_call`).
"""

from __future__ import annotations

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.forced_call import schema_of_calls
from manallm_proxy.openai.request_fields import (
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
from manallm_proxy.openai.stand_ins import StandIns, read_texts
from manallm_proxy.openai.tool_choice import function_tools, tool_choice
from manallm_proxy.providers.ollama import messages as ollama_messages
from manallm_proxy.providers.ollama.settings import settings
from manallm_proxy.providers.wire import Request


def build(call: Call, entry: Entry, *, client_options: bool = False) -> Request:
    """The POST for one target. Raises InvalidRequest or Unsupported, with the offending field in ``param``.

    `client_options`: whether the client may set options that affect all clients of the model, see `settings`.
    """
    asked, texts = read_texts(call.body)
    if call.ollama:
        asked = {**asked, **call.ollama}
        if isinstance(messages := asked.get("messages"), bytes):
            asked["messages"] = texts.read(messages)
    match call.endpoint:
        case Endpoint.CHAT:
            path, fields = "api/chat", _chat(asked, call.remarks, texts)
        case Endpoint.COMPLETIONS:
            path, fields = "api/generate", _generate(asked)
        case Endpoint.EMBEDDINGS:
            path, fields = "api/embed", _embed(asked)
        case other:
            raise Unsupported(f"Ollama has nothing like {other.path}", param="model")
    if call.endpoint is not Endpoint.EMBEDDINGS:
        fields["stream"] = call.summary.stream  # Ollama's default is true
    fields |= settings(asked, entry.options, call.endpoint, allowed=client_options, remarks=call.remarks)
    if "thinking" in call.denied and asked.get("think") is None:
        fields.pop("think", None)  # Ollama would answer 400; an effort is often a client's global setting
    try:
        return Request(path, texts.encode({"model": entry.target.model, **fields}, call.is_large))
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


# --- the three endpoints --------------------------------------------------------------------------


def _chat(asked: Fields, remarks: list[str], texts: StandIns) -> Fields:
    _reject_ignored_fields(asked)
    messages = required(asked, "messages", list, "")
    if not messages:
        raise InvalidRequest("'messages' is empty", param="messages")  # Ollama would only load the model
    translated = ollama_messages.translate(messages, remarks, texts.object_bytes)
    fields: Fields = {"messages": translated} | _format(asked) | _tools(asked)
    if optional(asked, "logprobs", bool):
        fields["logprobs"] = True
    if (top := optional(asked, "top_logprobs", int)) is not None:
        fields["top_logprobs"] = top
    return fields


def _generate(asked: Fields) -> Fields:
    """As Ollama's own openai/openai.go FromCompleteRequest, except that fields which it drops silently are refused."""
    _reject_ignored_fields(asked)
    fields: Fields = {"prompt": _prompt(asked.get("prompt"))} | _format(asked)
    if (suffix := optional(asked, "suffix", str)) is not None:
        fields["suffix"] = suffix
    if not fields["prompt"] and not suffix:  # with one it says nothing, too, as there is little to say
        raise Unsupported("Ollama begins no text from an empty prompt: it would only load the model", param="prompt")
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
    texts, dimensions = wanted_vectors(asked, "Ollama")
    return {"input": texts} | ({} if dimensions is None else {"dimensions": dimensions})


def _reject_ignored_fields(asked: Fields) -> None:
    """Raises Unsupported for fields that Ollama would silently ignore although the answer depends on them."""
    for key in ("n", "best_of"):
        choices = optional(asked, key, int)
        if choices is not None and choices < 1:
            raise wrong(key, "at least 1")
        if choices is not None and choices > 1:
            raise Unsupported(f"Ollama gives one choice a request, {key} is {choices}", param=key)
    if optional(asked, "echo", bool):
        raise Unsupported("Ollama does not repeat the prompt in its answer (echo)", param="echo")
    if set(texts_of(optional(asked, "modalities", list) or [], "modalities")) - {"text"}:
        raise Unsupported("Ollama answers in text alone", param="modalities")
    if asked.get("web_search_options") is not None:
        raise Unsupported("Ollama does not search the web", param="web_search_options")
    if asked.get("functions"):
        raise Unsupported("'functions' is an older form that is not translated: send 'tools'", param="functions")


# --- tools, formats, settings ---------------------------------------------------------------------


def _tools(asked: Fields) -> Fields:
    for n, tool in enumerate(all_of(dict, optional(asked, "tools", list) or [], "tools")):
        if tool.get("type", "function") != "function":
            raise Unsupported(f"Ollama knows tools of type 'function' only, tools[{n}] is another", param="tools")
    tools, choice = function_tools(asked), tool_choice(asked)
    allowed = choice.allowed(tools)
    if choice.mode == "none" or not tools:
        return {}
    return {"tools": allowed} | ({"format": schema_of_calls(allowed)} if choice.mode == "required" else {})


def _format(asked: Fields) -> Fields:
    schema = wanted_schema(asked)
    return {} if schema is None else {"format": schema or "json"}
