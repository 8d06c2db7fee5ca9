"""What a request to Ollama's API becomes, and what its answers are made of, in memory."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from manallm_proxy.contract.answers import Answer, Delta, StreamBatch, Usage
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.ollama.chat import OllamaChatDoor
from manallm_proxy.doors.ollama.embed import OllamaEmbedDoor
from manallm_proxy.doors.ollama.generate import OllamaGenerateDoor
from manallm_proxy.doors.ollama.models import FAMILY, ModelRow
from manallm_proxy.doors.ollama.reply import ChatReply, GenerateReply
from manallm_proxy.doors.ollama.results import Called, Result, answered_calls
from manallm_proxy.openai.request import EMBEDDING
from tests.cases import every

HI = {"role": "user", "content": "hi"}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n0000").decode()
CLIENT = Client("r")


def read(door: Any, **asked: Any) -> Call:
    call, _ = door.read(json.dumps({"model": "m", **asked}).encode(), CLIENT)
    assert isinstance(call, Call)
    return call


def chat(**asked: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(read(OllamaChatDoor(), **{"messages": [HI], **asked}).body)
    return made


def calling(*ids: str | None, **more: Any) -> dict[str, Any]:
    calls = [{"function": {"name": "f"}} | ({} if id_ is None else {"id": id_}) for id_ in ids]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


F, G = Called("", "f", "c1"), Called("", "g", "c2")
IDS = [Called("a", "f", "a"), Called("b", "f", "b")]
ANSWERED: list[tuple[list[Called], list[Result], list[str | None]]] = [
    ([F, G], [Result("", ""), Result("", "")], ["c1", "c2"]),
    ([F, G], [Result("", "g"), Result("", "f")], ["c2", "c1"]),
    ([F, G], [Result("", ""), Result("", "f")], ["c2", "c1"]),
    ([F, G], [Result("x", ""), Result("", "f")], ["c2", "c1"]),
    ([F, G], [Result("", "h"), Result("", "h")], ["c1", "c2"]),
    ([F, G], [Result("x", "g"), Result("y", "f")], ["c2", "c1"]),
    (IDS, [Result("b", "f"), Result("a", "f")], ["b", "a"]),
    (IDS, [Result("b", "f"), Result("", "f")], ["b", "a"]),
    (IDS, [Result("b", "f"), Result("x", "f")], ["b", "a"]),
    (IDS, [Result("x", ""), Result("b", "")], [None, "b"]),
    ([IDS[0], G], [Result("x", ""), Result("a", "")], ["c2", "a"]),
    ([IDS[0], G], [Result("x", ""), Result("", "g")], [None, "c2"]),
    ([F], [Result("", ""), Result("", "")], ["c1", None]),
]


@every(ANSWERED)
def test_a_result_answers_what_is_certain_first(
    calls: list[Called], results: list[Result], ids: list[str | None]
) -> None:
    """Ids, then names, then the order; one whose id is none of these by order only where the calls have none."""
    answered = answered_calls(calls, dict(enumerate(results)))
    assert [answered.get(n) for n in range(len(results))] == ids


def test_an_id_that_comes_again_is_made_another() -> None:
    """Some clients number the calls of each turn from 0, and strict servers take an id once. What is made stays."""
    result = {"role": "tool", "content": "x", "tool_call_id": "c0"}
    history = [HI, calling("c0"), result, calling("c0", None), result, {"role": "tool", "content": "y"}]
    sent = chat(messages=history)["messages"]
    assert [call["id"] for row in sent for call in row.get("tool_calls", ())] == ["c0", "call00001", "call00002"]
    assert [row["tool_call_id"] for row in sent if row["role"] == "tool"] == ["c0", "call00001", "call00002"]
    assert sent[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    with pytest.raises(InvalidRequest, match=r"^'messages\[0\]' answers no tool call before it: 'c0'$"):
        chat(messages=[result, HI])


def test_a_picture_may_be_a_data_uri() -> None:
    """Whose type is the client's; one without base64 is none."""
    uri = f"data:image/webp;base64,{PNG}"
    (part,) = chat(messages=[{"role": "user", "content": "", "images": [uri]}])["messages"][0]["content"]
    assert part == {"type": "image_url", "image_url": {"url": uri}}
    for odd in ("data:image/png;base64", "data:image/png;base64,!"):
        with pytest.raises(InvalidRequest, match=r"^'images\[1\]' must be an image in base64"):
            read(OllamaGenerateDoor(), prompt="x", images=[PNG, odd])


def test_links_to_pictures_are_pictures_in_what_the_model_said() -> None:
    """And text in what others did, such as a page that a tool has read."""
    link = f"See![image](data:image/png;base64,{PNG})"
    sent = chat(messages=[{"role": "user", "content": link}, {"role": "assistant", "content": link}, HI])["messages"]
    assert sent[0] == {"role": "user", "content": link}
    assert (sent[1]["content"], len(sent[1]["images"])) == ("See", 1)


FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"think": True}, {"reasoning_effort": "medium"}),
    ({"think": "high"}, {"reasoning_effort": "high"}),
    ({"think": False}, {"reasoning_effort": "none"}),
    ({"think": ""}, {}),
    ({"top_logprobs": 2}, {}),
    ({"logprobs": False, "top_logprobs": 2}, {}),
    ({"logprobs": True}, {"logprobs": True}),
    ({"options": {"num_predict": 1}}, {"max_tokens": 1}),
    ({"options": {"num_predict": 0}}, {}),
    ({"options": {"num_predict": -2, "seed": None}}, {}),
]


@every(FIELDS)
def test_settings(asked: dict[str, Any], made: dict[str, Any]) -> None:
    assert chat(**asked) == {"model": "m", "messages": [HI], "stream": True, **made}


def test_settings_that_only_an_ollama_knows() -> None:
    for options, kept in (({"num_predict": -2}, {"options": {"num_predict": -2}}), ({"num_predict": 0}, {}), ({}, {})):
        assert read(OllamaChatDoor(), messages=[HI], options=options).ollama == kept


def test_a_gap_at_the_beginning_is_no_request_to_load() -> None:
    """Editors complete the first line of a file, too; an Ollama with ``raw`` would not see what follows the gap."""
    call = read(OllamaGenerateDoor(), suffix="b")
    assert (call.endpoint, call.answer, call.ollama) == (Endpoint.COMPLETIONS, None, {})
    assert json.loads(call.body) == {"model": "m", "prompt": "", "suffix": "b", "stream": True}
    assert read(OllamaGenerateDoor(), prompt="", suffix="").answer is not None
    assert read(OllamaGenerateDoor(), prompt="x", raw=True).ollama == {"raw": True}


def test_only_vectors_need_a_model_that_embeds() -> None:
    assert EMBEDDING in read(OllamaEmbedDoor(), input="x").summary.needs
    assert EMBEDDING not in read(OllamaChatDoor(), messages=[HI]).summary.needs


def test_an_unknown_window_is_left_out() -> None:
    """Clients would take zero for the size of it."""
    shown = ModelRow("m:latest", 0).shown()
    assert not any("context_length" in key for key in (*shown["model_info"], *shown["details"]))
    assert ModelRow("m:latest", 0, context_length=8).shown()["model_info"][f"{FAMILY}.context_length"] == 8


def test_what_ends_an_answer_is_remembered_whatever_comes_after_it() -> None:
    """OpenRouter sends a chunk without words behind the one with the reason."""
    reply = ChatReply("m")
    reply.start(Target("p", "m"))
    deltas = (Delta("x"), Delta(refusal=" no"), Delta(finish="length"), Delta(""))
    said = [json.loads(reply.events(StreamBatch(deltas=(delta,), has_content=True)) or b"null") for delta in deltas]
    assert [row and row["message"]["content"] for row in said] == ["x", " no", None, None]
    assert json.loads(reply.end(Usage(1, 2)))["done_reason"] == "length"


@every(
    [
        ({"tokens": ["a", "b"], "token_logprobs": [-1.0]}, [{"token": "a", "logprob": -1.0}, {"token": "b"}]),
        ({"tokens": ["a"], "token_logprobs": None}, [{"token": "a"}]),
        ({"content": [{"token": "a", "logprob": -1.0}]}, [{"token": "a", "logprob": -1.0}]),
        ({"content": None}, None),
        ([1], None),
    ]
)
def test_logprobs_of_a_prompt(given: Any, made: list[Any] | None) -> None:
    whole = GenerateReply("m").whole(Target("p", "m"), Answer(choices=(Delta("a", logprobs=given, finish="stop"),)))
    assert json.loads(whole).get("logprobs") == made
