"""Schemas of tools that say too little at their top, or something else than an object: for one, all are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.providers.mending.tool_schemas import object_schema, refuses_schemas
from tests.cases import every
from tests.histories import GO, MESSAGE, RESPONSE
from tests.proxy import openai, proxy, settings
from tests.upstreams import Answer, Connection, Seen, answers, each, upstream
from tests.waiting import until

NOTE = "history: schemas of tools written as objects"
A, B = {"a": {"type": "string"}}, {"b": {"type": "integer"}}
EMPTY = {"type": "object", "properties": {}}
OPENAI = "Invalid schema for function 'f': In context=(), object schema missing properties."
TOP = "Invalid schema for function 'f': schema must have type 'object' and not have 'anyOf' at the top level"
DEEPSEEK = "Invalid schema for function 'f': schema must be a JSON Schema of 'type: \"object\"', got 'type: null'."
KIMI = 'tools.function.parameters.type is required and must be "object"'
CLAUDE = "tools.0.custom.input_schema.type: Field required"
FORMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, EMPTY),
    ({"type": "object"}, EMPTY),
    ({"type": None, "properties": A}, {"type": "object", "properties": A}),
    ({"properties": A, "required": ["a"]}, {"type": "object", "properties": A, "required": ["a"]}),
    ({"type": "object", "properties": None, "$defs": {}}, {**EMPTY, "$defs": {}}),
    (
        {"anyOf": [{"type": "object", "properties": A, "required": ["a"]}, {"properties": B}, {"type": "null"}]},
        {"type": "object", "properties": {**A, **B}},
    ),
    (
        {"type": "object", "properties": {"a": {}}, "required": ["a"], "oneOf": [{"properties": A}, {"properties": B}]},
        {"type": "object", "properties": {"a": {}, **B}, "required": ["a"]},
    ),
    (
        {"allOf": [{"properties": A, "required": ["a"]}, {"properties": B, "required": ["b", 3]}], "title": "t"},
        {"type": "object", "properties": {**A, **B}, "required": ["a", "b"], "title": "t"},
    ),
    ({"type": "object", "properties": A, "required": []}, {"type": "object", "properties": A, "required": []}),
]


@every(FORMS)
def test_a_schema_as_an_object(schema: dict[str, Any], written: dict[str, Any]) -> None:
    """Once, and with the same outcome the second time."""
    assert object_schema(schema) == written
    assert object_schema(written) == written


def schema_of(tool: dict[str, Any]) -> Any:
    return tool.get("function", tool).get("parameters", tool.get("input_schema"))


def strict(words: str, answer: Answer) -> Answer:
    """Refuses what has no type or properties, or alternatives at its top."""

    async def answered(connection: Connection, seen: Seen) -> None:
        schemas = [schema_of(tool) or {} for tool in seen.json["tools"]]
        if all(each.get("type") == "object" and "properties" in each and "anyOf" not in each for each in schemas):
            await answer(connection, seen)
        else:
            await connection.reply({"error": {"message": words}}, "400 Bad Request")

    return answered


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


@pytest.mark.parametrize("words", [OPENAI, TOP, DEEPSEEK, KIMI])
@pytest.mark.parametrize("stream", [False, True])
async def test_chats(words: str, stream: bool, tmp_path: Path) -> None:
    """Relayed ones, too: once it is known, the model gets them as objects at once. Others keep their bytes."""
    fine = tool("fine", parameters={"type": "object", "properties": {"x": {"default": 1.0}}})
    tools = [tool("none"), tool("null", parameters=None), tool("any", parameters={"anyOf": [{"properties": A}]}), fine]
    async with upstream(each(strict(words, answers))) as up:
        async with proxy(settings({"p": openai(up.url)}), tmp_path) as p:
            for expected in (2, 3):
                asked = {"model": "p/m", "messages": [GO], "tools": tools, "stream": stream}
                async with p.client.post(p.url + "/v1/chat/completions", json=asked) as response:
                    assert (response.status, b"Hel" in await response.read()) == (200, True)
                assert len(up.posts) == expected
                sent = up.posts[-1].json["tools"]
                any_ = {"type": "object", "properties": A}
                assert [schema_of(each) for each in sent[:3]] == [EMPTY, EMPTY, any_]
                assert json.dumps(schema_of(fine)) in up.posts[-1].body.decode()
            await until(lambda: NOTE in p.log.getvalue())


@pytest.mark.parametrize(("path", "words"), [("/v1/responses", DEEPSEEK), ("/v1/messages", CLAUDE)])
@pytest.mark.parametrize("speaks", [True, False])
async def test_other_apis(path: str, words: str, speaks: bool, tmp_path: Path) -> None:
    """Of a provider that speaks them, and translated."""
    dialect = path.rpartition("/")[2]

    async def native(connection: Connection, seen: Seen) -> None:
        await connection.reply(RESPONSE if dialect == "responses" else MESSAGE)

    schema: dict[str, Any] = {"anyOf": [{"properties": A}]}
    is_message = dialect == "messages"
    one = (
        {"name": "f", "input_schema": schema} if is_message else {"type": "function", "name": "f", "parameters": schema}
    )
    body = {"model": "p/m", "messages" if is_message else "input": [GO], "tools": [one], "max_tokens": 9}
    async with upstream(each(strict(words, native if speaks else answers))) as up:
        config = settings({"p": openai(up.url, speaks=[dialect] if speaks else ["chat"])})
        async with proxy(config, tmp_path) as p:
            assert (await p.post(path, body))[0] == 200
            assert schema_of(up.posts[-1].json["tools"][0]) == {"type": "object", "properties": A}


async def test_alternatives_of_others_are_kept(tmp_path: Path) -> None:
    """One caller's tool was no object, which the server says of it alone: nobody's alternatives were sent any more."""

    async def answered(connection: Connection, seen: Seen) -> None:
        if all(schema_of(each).get("type") == "object" for each in seen.json["tools"]):
            await answers(connection, seen)
        else:
            words = "Invalid schema for function 'f': schema must have type 'object'"
            await connection.reply({"error": {"message": words}}, "400 Bad Request")

    fine = tool("f", parameters={"type": "object", "properties": {**A, **B}, "oneOf": [{"required": ["a"]}]})
    async with upstream(each(answered)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for one in (tool("f", parameters={"type": "string"}), fine):
            assert (await p.chat(model="p/m", messages=[GO], tools=[one]))[0] == 200
        assert (len(up.posts), up.posts[-1].json["tools"]) == (3, [fine])


def test_many_alternatives() -> None:
    """In time that grows as they do: of 8,000 it was 0.4 s, of twice as many four times that."""
    branches = [{"properties": {f"a{n}": n, "a": n}} for n in range(200_000)]
    properties = object_schema({"anyOf": branches})["properties"]
    assert (len(properties), properties["a"]) == (200_001, 0)


async def test_words_of_the_caller_teach_nothing(tmp_path: Path) -> None:
    """A text with the words of such a refusal may be quoted in one: its own request is changed alone."""
    async with upstream(each(strict(OPENAI, answers))) as up:
        async with proxy(settings({"p": openai(up.url)}), tmp_path) as p:
            for said, expected in ((OPENAI, 2), ("go", 4)):
                messages = [{"role": "user", "content": said}]
                assert (await p.chat(model="p/m", messages=messages, tools=[tool("none")]))[0] == 200
                assert len(up.posts) == expected


@every(
    [
        *((words, True) for words in (OPENAI, TOP, DEEPSEEK, KIMI, CLAUDE)),
        ("f: tool parameter root must be an object type (root schema is an anyOf/oneOf union)", True),
        ("tools.3.custom.input_schema: input_schema does not support oneOf, allOf, or anyOf at the top level", True),
        ("Invalid value for 'parameters': too long", False),
        ("'temperature' is missing", False),
    ]
)
def test_how_they_are_refused(words: str, is_refused: bool) -> None:
    assert refuses_schemas(words.encode()) is is_refused
