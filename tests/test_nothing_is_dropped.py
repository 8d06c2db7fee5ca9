"""What a client sends and the target's API can express arrives there; what it cannot express is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.errors import InvalidRequest, ProxyError
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.openai.assistant_message import without_image_links
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.gemini.wire import GeminiWire
from manallm_proxy.providers.ollama.wire import OllamaWire
from manallm_proxy.providers.wire import Wire
from tests import anthropic_stream
from tests.cases import every
from tests.proxy import everything, openai, proxy, settings
from tests.upstreams import DONE, Connection, Seen, completion, each, upstream

HI = {"role": "user", "content": "hi"}
AGAIN = {"role": "user", "content": "again"}
DATA = "aGVsbG8="
URI = f"data:image/png;base64,{DATA}"
IMAGE = {"type": "image_url", "image_url": {"url": URI}}
INLINE = {"inlineData": {"mimeType": "image/png", "data": DATA}}
ANY_SIGNATURE = {"thoughtSignature": "skip_thought_signature_validator"}


def sent(wire: Wire, model: str, asked: dict[str, Any], endpoint: Endpoint = Endpoint.CHAT) -> dict[str, Any]:
    """The body that `model` gets."""
    body = json.dumps({"messages": [HI], **asked} if endpoint is Endpoint.CHAT else asked).encode()
    key = "messages" if endpoint is Endpoint.CHAT else "prompt"
    call = Call(endpoint, read_summary(body, (key, (list, str, type(None)))), body, "r")
    request: dict[str, Any] = json.loads(bytes(wire.request(call, Entry(Target("p", model))).body))
    return request


def gemini(model: str = "gemini-2.5-flash", /, **asked: Any) -> dict[str, Any]:
    return sent(GeminiWire(), model, asked)


def ollama(**asked: Any) -> dict[str, Any]:
    return sent(OllamaWire(), "m", asked)


REASONING: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], Any]] = [
    (
        {"effort": "high"},
        {"includeThoughts": True, "thinkingBudget": 24576},
        {"includeThoughts": True, "thinkingLevel": "HIGH"},
        "high",
    ),
    (
        {"effort": "low", "exclude": True},
        {"includeThoughts": False, "thinkingBudget": 1024},
        {"includeThoughts": False, "thinkingLevel": "LOW"},
        "low",
    ),
    (
        {"max_tokens": 2000},
        {"includeThoughts": True, "thinkingBudget": 2000},
        {"includeThoughts": True, "thinkingLevel": "LOW"},
        "low",
    ),
    ({"max_tokens": 9000}, {"includeThoughts": True, "thinkingBudget": 9000}, {"thinkingLevel": "MEDIUM"}, "medium"),
    ({"max_tokens": 20_000}, {"thinkingBudget": 20_000}, {"thinkingLevel": "HIGH"}, "high"),
    ({"max_tokens": 0}, {"includeThoughts": False, "thinkingBudget": 0}, {"thinkingLevel": "MINIMAL"}, False),
    ({"enabled": False}, {"includeThoughts": False, "thinkingBudget": 0}, {"thinkingLevel": "MINIMAL"}, False),
    ({"enabled": True}, {"includeThoughts": True}, {"includeThoughts": True}, True),
    ({"enabled": True, "effort": ""}, {"includeThoughts": True}, {"includeThoughts": True}, True),
]


@every(REASONING)
def test_reasoning_in_openrouters_form(
    asked: dict[str, Any], budget: dict[str, Any], level: dict[str, Any], think: Any
) -> None:
    """Open WebUI turns every ``reasoning_effort`` into it."""
    older, newer = gemini(reasoning=asked), gemini("gemini-3-flash", reasoning=asked)
    assert budget.items() <= older["generationConfig"]["thinkingConfig"].items()
    assert level.items() <= newer["generationConfig"]["thinkingConfig"].items()
    assert "thinkingBudget" not in newer["generationConfig"]["thinkingConfig"]
    assert ollama(reasoning=asked)["think"] == think


@pytest.mark.parametrize("key", ["enable_thinking", "thinking"])
def test_thinking_as_other_servers_are_told(key: str) -> None:
    """By vLLM's and llama.cpp's ``chat_template_kwargs``. An effort comes first."""
    off, on = ({"chat_template_kwargs": {key: value}} for value in (False, True))
    assert (ollama(**off)["think"], ollama(**on)["think"]) == (False, True)
    assert gemini(**off)["generationConfig"] == {"thinkingConfig": {"includeThoughts": False, "thinkingBudget": 0}}
    assert gemini(**on)["generationConfig"] == {"thinkingConfig": {"includeThoughts": True}}
    assert ollama(**off, reasoning_effort="high")["think"] == "high"
    assert ollama(**off, reasoning={"effort": "high"})["think"] == "high"
    for odd in (None, {}, {key: None}, {key: "yes"}, "x"):
        assert "think" not in ollama(chat_template_kwargs=odd)


def test_fields_of_googles_own_openai_endpoint() -> None:
    """As its documentation has them. What they say of thinking comes first."""
    settings = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    thinking = {"thinking_budget": 800, "include_thoughts": True}
    google = {"thinking_config": thinking, "cached_content": "cachedContents/x", "safety_settings": settings}
    sent = gemini(extra_body={"google": google}, reasoning_effort="low", temperature=1)
    assert sent["generationConfig"] == {
        "temperature": 1,
        "thinkingConfig": {"includeThoughts": True, "thinkingBudget": 800},
    }
    assert (sent["cachedContent"], sent["safetySettings"]) == ("cachedContents/x", settings)
    level = gemini("gemini-3-flash", extra_body={"google": {"thinking_config": {"thinking_level": "low"}}})
    assert level["generationConfig"] == {"thinkingConfig": {"thinkingLevel": "LOW"}}
    others: list[Any] = [None, "x", {}, {"google": None}, {"google": {}}, {"other": {"x": 1}}]
    for other in others:
        assert gemini(extra_body=other) == gemini()


@every(
    [
        ({"x": 1}, Unsupported, "extra_body.google"),
        ({"thinking_config": {"x": 1}}, Unsupported, "extra_body.google.thinking_config"),
        ({"thinking_config": 3}, InvalidRequest, "extra_body.google.thinking_config"),
        (
            {"thinking_config": {"thinking_budget": "3"}},
            InvalidRequest,
            "extra_body.google.thinking_config.thinking_budget",
        ),
        ({"cached_content": 3}, InvalidRequest, "extra_body.google.cached_content"),
        ({"safety_settings": ["x"]}, InvalidRequest, "extra_body.google.safety_settings[0]"),
    ]
)
def test_a_mistake_in_googles_fields_is_named(google: Any, error: type[ProxyError], param: str) -> None:
    with pytest.raises(error) as caught:
        gemini(extra_body={"google": google})
    assert caught.value.param == param


@every([{}, {"exclude": True}, {"effort": None}, "high", None])
def test_nothing_asked_of_reasoning(asked: Any) -> None:
    assert "generationConfig" not in gemini(reasoning=asked)
    assert "think" not in ollama(reasoning=asked)


@every(
    [
        ({"reasoning": {"effort": "very"}}, "reasoning.effort"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"reasoning": {"max_tokens": "3"}}, "reasoning.max_tokens"),
        ({"reasoning": {"enabled": "yes"}}, "reasoning.enabled"),
        ({"reasoning": {"exclude": 1}}, "reasoning.exclude"),
        ({"reasoning": {"effort": ""}, "reasoning_effort": "very"}, "reasoning_effort"),
    ]
)
def test_a_mistake_in_reasoning_is_named(asked: dict[str, Any], param: str) -> None:
    for ask in (gemini, ollama):
        with pytest.raises(InvalidRequest) as caught:
            ask(**asked)
        assert caught.value.param == param


@pytest.mark.parametrize("images", [[IMAGE], [{"image_url": URI}], [URI]])
@pytest.mark.parametrize("text", [None, "", "Here."])
def test_an_image_that_the_model_made_stays_in_its_history(images: list[Any], text: str | None) -> None:
    """As our own answers have it: without it there is nothing that "make it blue" could mean."""
    history = [HI, {"role": "assistant", "content": text, "images": images}, AGAIN]
    words = [{"text": text}] if text else []
    assert gemini(messages=history)["contents"][1] == {"role": "model", "parts": [*words, INLINE]}
    newer = gemini("gemini-3-pro-image", messages=history)["contents"][1]
    assert newer == {"role": "model", "parts": [*words, {**INLINE, **ANY_SIGNATURE}]}
    assert ollama(messages=history)["messages"][1] == {"role": "assistant", "content": text or "", "images": [DATA]}


@pytest.mark.parametrize("content", [None, "", []])
def test_a_refusal_is_what_was_said(content: Any) -> None:
    """OpenAI's SDKs send an assistant's message back as they got it."""
    history = [HI, {"role": "assistant", "content": content, "refusal": "I can not."}, AGAIN]
    assert gemini(messages=history)["contents"][1] == {"role": "model", "parts": [{"text": "I can not."}]}
    assert ollama(messages=history)["messages"][1] == {"role": "assistant", "content": "I can not."}
    said = [HI, {"role": "assistant", "content": "Yes.", "refusal": None}, AGAIN]
    assert ollama(messages=said)["messages"][1] == {"role": "assistant", "content": "Yes."}


@every(
    [
        ({"messages": [HI, {"role": "assistant", "audio": {"id": "audio_1"}}]}, "messages"),
        ({"messages": [HI, {"role": "assistant", "content": None, "function_call": {"name": "f"}}]}, "messages"),
        ({"messages": [HI, {"role": "assistant", "images": [{"image_url": "https://x/y.png"}]}]}, "messages"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"modalities": ["text", "audio"]}, "modalities"),
    ]
)
def test_what_cannot_be_expressed_is_refused(asked: dict[str, Any], param: str) -> None:
    """A turn that was left out in silence would be a conversation that never was."""
    for ask in (gemini, ollama):
        with pytest.raises(Unsupported) as caught:
            ask(**asked)
        assert caught.value.param == param


def test_what_an_audio_answer_said_can_be_sent_as_text() -> None:
    history = [HI, {"role": "assistant", "content": "Hello.", "audio": {"id": "audio_1"}}, AGAIN]
    assert ollama(messages=history)["messages"][1]["content"] == "Hello."


def test_images_are_asked_for() -> None:
    """In OpenRouter's form. Ollama makes none."""
    assert gemini(modalities=["image", "text"])["generationConfig"] == {"responseModalities": ["IMAGE", "TEXT"]}
    assert "generationConfig" not in gemini(modalities=["text"])
    with pytest.raises(Unsupported, match="text alone"):
        ollama(modalities=["image", "text"])


@pytest.mark.parametrize("prompt", ["", None, [""]])
def test_ollama_only_loads_a_model_for_an_empty_prompt(prompt: Any) -> None:
    """An empty answer would look as if the model had nothing to say."""
    with pytest.raises(Unsupported, match="empty prompt") as caught:
        sent(OllamaWire(), "m", {"prompt": prompt}, Endpoint.COMPLETIONS)
    assert caught.value.param == "prompt"
    assert sent(OllamaWire(), "m", {"prompt": prompt, "suffix": "b"}, Endpoint.COMPLETIONS)["prompt"] == ""


def calling(*results: Any) -> dict[str, Any]:
    """A conversation with as many calls as there are results."""
    calls = [{"id": f"c{n}", "function": {"name": f"f{n}", "arguments": "{}"}} for n in range(len(results))]
    rows = [{"role": "tool", "tool_call_id": f"c{n}", "content": result} for n, result in enumerate(results)]
    return {"messages": [HI, {"role": "assistant", "tool_calls": calls}, *rows, AGAIN]}


def test_an_image_among_a_tools_results() -> None:
    """Ollama has a place for it. Gemini gets all results first, and then what they could not hold."""
    asked = calling([{"type": "text", "text": "a"}, IMAGE], "b", [IMAGE])
    assert [row.get("images") for row in ollama(**asked)["messages"]] == [None, None, [DATA], None, [DATA], None]
    answered = gemini(**asked)["contents"][2]["parts"]
    outputs = [part["functionResponse"]["response"]["output"] for part in answered[:3]]
    assert (outputs, answered[3:]) == (["a", "b", ""], [INLINE, INLINE, {"text": "again"}])


def test_a_result_after_a_users_words_stays_behind_them() -> None:
    asked = {"messages": [HI, {"role": "tool", "tool_call_id": "c", "name": "f", "content": [IMAGE]}, AGAIN]}
    assert [next(iter(part)) for part in gemini(**asked)["contents"][0]["parts"]] == [
        *("text", "functionResponse", "inlineData", "text"),
    ]


@every([[{"type": "text"}], [{"type": "text", "text": 3}], [{"type": "video"}, IMAGE], ["x"], 3])
def test_a_result_that_is_none_is_named(content: Any) -> None:
    with pytest.raises(ProxyError) as caught:
        gemini(**calling(content))
    assert caught.value.param is not None and caught.value.param.startswith("messages[2].content")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat"])
async def test_an_image_that_is_a_link_in_a_text_comes_back_as_an_image(
    tmp_path: Path, path: str, stream: bool
) -> None:
    """Its base64 would be read as half a million tokens a megabyte."""

    async def paints(connection: Connection, seen: Seen) -> None:
        message = {"role": "assistant", "content": "Here: ", "images": [IMAGE, IMAGE]}
        if not seen.json["stream"]:
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            await connection.reply({**completion(), "choices": [choice]})
            return
        await connection.head()
        row = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        choice = {"index": 0, "delta": message, "finish_reason": "stop"}
        await connection.chunk(b"data: " + json.dumps({**row, "choices": [choice]}).encode() + b"\n\n" + DONE)
        await connection.end()

    async with upstream(each(paints)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        asked = {"model": "p/m", "max_tokens": 9, "messages": [HI], "stream": stream}
        async with p.client.post(p.url + path, json=asked) as response:
            raw = await everything(response)
        if path == "/api/chat":
            said = "".join(json.loads(line)["message"]["content"] for line in raw.splitlines())
        else:
            [block] = (anthropic_stream.message(raw) if stream else json.loads(raw))["content"]
            said = block["text"]
        assert said == f"Here: ![image]({URI})![image]({URI})"
        await p.post(path, {**asked, "stream": False, "messages": [HI, {"role": "assistant", "content": said}, AGAIN]})
        assert up.posts[-1].json["messages"][1] == {"role": "assistant", "content": "Here: ", "images": [IMAGE, IMAGE]}


@every(
    [
        ("x", "x", []),
        (f"a![image]({URI})b", "ab", [URI]),
        ("![image](https://x/y.png)", "![image](https://x/y.png)", []),
        (f"![image](data:image/svg+xml,<svg>) ![image]({URI})", "![image](data:image/svg+xml,<svg>) ", [URI]),
        (f"![image]({URI}", f"![image]({URI}", []),
        (f"![cat]({URI})", f"![cat]({URI})", []),
    ]
)
def test_links_to_images_in_a_text(text: str, kept: str, urls: list[str]) -> None:
    """Only those that a door has made of an image's own data."""
    assert without_image_links(text) == (kept, urls)
