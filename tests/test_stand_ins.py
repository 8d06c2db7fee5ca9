"""Long texts that are carried from one JSON string into another, byte for byte, and never decoded."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.doors.messages.door import MessagesDoor
from manallm_proxy.doors.ollama.chat import OllamaChatDoor
from manallm_proxy.doors.ollama.generate import OllamaGenerateDoor
from manallm_proxy.doors.responses import items
from manallm_proxy.doors.responses import request as responses_request
from manallm_proxy.doors.responses.store import Stored
from manallm_proxy.openai import joined, large, stand_ins
from manallm_proxy.openai.long_strings import LongString, long_strings
from manallm_proxy.openai.request import read_summary
from manallm_proxy.openai.stand_ins import read_texts
from manallm_proxy.providers.gemini import request as gemini
from manallm_proxy.providers.ollama import request as ollama
from manallm_proxy.providers.ollama.wire import OllamaWire
from manallm_proxy.providers.wire import Request
from tests.responses import Opened
from tests.waiting import until

MIB = 2**20
ENTRY = Entry(Target("p", "gemini-3-pro"))
WIRES: dict[str, Callable[[Call], bytes]] = {
    "ollama": lambda call: ollama.build(call, ENTRY).body,
    "google": lambda call: gemini.build(call, ENTRY).body,
}
GRIN = "\U0001f600"
TEXTS = {
    "plain": "x" * 5000,
    "quotes": 'He said "\\no\\" \n' * 300,
    "backslashes": "\\" * 5000 + "x",
    "emoji": GRIN * 1500,
    "shorter": "word " * 150 + GRIN,
    "at each place": "ab" + (GRIN + '\\"\n') * 600,
    "an object": json.dumps({"text": 'a "b"\n' * 900, GRIN: 1}),
    "an object after blanks": "\n" * 70 + json.dumps({"text": "a" * 5000}),
    "no object": "  {" + "x" * 5000,
    "an image": "![image](data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB) " + "x" * 5000,
    "keys": '{"text": "text": "' * 300,
    "odd": "\0\x01\x7f\u2028\ufffe" * 1000,
}
SIGNED = {"google": {"thought_signature": "QUJD" * 2000}}
HALVED = '"' + "\\ud83d x \\ude00 \\ud83d\\ude00" * 500 + '"'

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 30 + b"xy").decode()
PICTURES = {
    "as most": PNG,
    "of another length": PNG[:-8] + "AAAA",
    "unpadded": PNG.rstrip("="),
    "in lines": "\n".join(PNG[at : at + 76] for at in range(0, len(PNG), 76)),
    "in the other alphabet": PNG.replace("+", "-").replace("/", "_"),
    "broken": PNG[:-9] + "*" + PNG[-8:],
    "broken early": "*" + PNG[1:],
    "cut": PNG[:-3],
    "padded within": PNG[:4000] + "A===" + PNG[4000:],
    "spaced": PNG[:5000] + "    " + PNG[5000:],
    "not ASCII": PNG[:5000] + GRIN * 4 + PNG[5000:],
}


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Sets whether requests of some kilobytes have stand-ins: none, and then as if they were large."""

    def set_to(carried: bool) -> None:
        monkeypatch.setattr(stand_ins, "LEAST", 1000 if carried else 10**9)
        monkeypatch.setattr(responses_request, "LEAST", 1000 if carried else 10**9)
        monkeypatch.setattr(stand_ins, "_MANY", 0)
        monkeypatch.setattr(stand_ins, "_MUCH", 0)
        monkeypatch.setattr(stand_ins, "_OTHERS", 5000)

    monkeypatch.setattr(large, "LARGE_BYTES", 1000)
    return set_to


def chat(text: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": json.dumps({"text": text, "n": [text]})}
    return {
        "messages": [
            {"role": "system", "content": text},
            {"role": "user", "content": [{"type": "text", "text": text}, {"type": "text", "text": "two"}]},
            {
                "role": "assistant",
                "content": text,
                "tool_calls": [{"id": "c", "type": "function", "function": function, "extra_content": SIGNED}],
            },
            {"role": "tool", "tool_call_id": "c", "content": text},
            {"role": "user", "content": text},
            {"role": "user", "content": "short"},
        ]
    }


def messages(text: str) -> dict[str, Any]:
    call = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": text, "deeper": {"text": text}}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": text, "is_error": True}
    return {
        "max_tokens": 9,
        "system": [{"type": "text", "text": text}],
        "messages": [
            {"role": "user", "content": text},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": text}, {"type": "text", "text": text}, call],
            },
            {"role": "user", "content": [result, {"type": "text", "text": text}]},
        ],
    }


def responses(text: str) -> dict[str, Any]:
    part = {"type": "input_text", "text": text}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": json.dumps({"text": text})}
    custom = {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": text}
    results = [
        {"type": "function_call_output", "call_id": "c", "output": text},
        {"type": "custom_tool_call_output", "call_id": "d", "output": [part, part]},
    ]
    said = {"role": "assistant", "content": [{"type": "output_text", "text": text}]}
    return {"instructions": text, "input": [{"role": "user", "content": [part]}, said, call, custom, *results]}


def to_ollama(text: str) -> dict[str, Any]:
    call = {"function": {"name": "f", "arguments": {"a": text}}}
    return {
        "messages": [
            {"role": "system", "content": text},
            {"role": "assistant", "content": text, "tool_calls": [call]},
            {"role": "tool", "content": text},
            {"role": "user", "content": text},
        ]
    }


def thoughtful(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": text, "thinking": text}, {"role": "user", "content": text}]}


def generate(text: str) -> dict[str, Any]:
    return {"prompt": text, "system": text}


def raw(text: str) -> dict[str, Any]:
    return {"prompt": text, "suffix": text}


async def read(door: str, body: bytes) -> tuple[Call, Any]:
    client = Client("r", None)
    match door:
        case "chat":
            return Call(Endpoint.CHAT, read_summary(body, ("messages", list)), body, "r"), None
        case "messages":
            return MessagesDoor().read(body, client)
        case "responses":
            reading = Opened().door.read(body, client)
            return reading if isinstance(reading, tuple) else await reading
        case "generate":
            return OllamaGenerateDoor().read(body, client)
    return OllamaChatDoor().read(body, client)


SAID = {"role": "user", "content": [{"type": "input_text", "text": "x" * 5000}]}
DOORS: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "chat": ("chat", chat),
    "messages": ("messages", messages),
    "responses": ("responses", responses),
    "ollama": ("ollama", to_ollama),
    "ollama, with thinking": ("ollama", thoughtful),
    "generate": ("generate", generate),
    "generate, raw": ("generate", raw),
}


@pytest.mark.parametrize("row", DOORS)
async def test_a_request_is_translated_as_if_its_texts_were_decoded(row: str, always: Callable[[bool], None]) -> None:
    """Through each door to each kind of provider, whatever the texts hold, written in each of JSON's ways."""
    door, make = DOORS[row]
    for name, text in {**TEXTS, "halves": "HALVED"}.items():
        for escaped in (True, False):
            asked = json.dumps({"model": "m", **make(text)}, ensure_ascii=escaped)
            body = asked.replace('"HALVED"', HALVED).encode()
            found: list[list[Any]] = []
            for carried in (False, True):
                always(carried)
                call, reply = await read(door, body)
                rows = [
                    call.body,
                    *[write(call) for kind, write in WIRES.items() if row != "generate, raw" or kind == "ollama"],
                ]
                if door == "responses":  # what the response repeats of it
                    rows.append(bytes(reply._shell.repeat()["instructions"]))
                found.append([json.loads(each) for each in rows])
                assert not carried or all(b"manallm" not in each for each in rows)
            assert found[0] == found[1], (name, escaped)


async def test_two_providers_of_the_same_api_may_be_written_to_at_once(
    always: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a hedge does, each in a thread: what one has decoded is not written with the stand-ins of the other."""
    always(True)
    body = json.dumps({"model": "m", "store": True, "input": [{"type": "reasoning", "id": "rs", "summary": []}, SAID]})
    client = Client("r", None, dialects=frozenset({Endpoint.RESPONSES.path}))
    reading = Opened().door.read(body.encode(), client)
    assert not isinstance(reading, tuple)
    native = (await reading)[0].native
    assert native is not None
    written = [native.write("a").body]

    def input_items(given: object) -> list[dict[str, Any]]:
        monkeypatch.setattr(responses_request, "input_items", items.input_items)  # once
        written.append(native.write("b").body)
        return items.input_items(given)

    native.shorten(is_translated=False)  # type: ignore[attr-defined]
    monkeypatch.setattr(responses_request, "input_items", input_items)
    written.append(native.write("a").body)
    assert len(written) == 3
    assert [json.loads(each)["input"] for each in written] == [[SAID]] * 3


ESCAPES = {  # what of which text is written how, through which door
    "ollama, with thinking": ("plain", "thinking", ("think\\u0069ng",)),
    "ollama": ("an image", "![image](", ("\\u0021[image](", "!\\u005Bimage](", "![image]\\u0028")),
    "messages": ("an image", "![image](", ("![\\u0069mage](", "!\\u005bima\\u0067e](", "![image\\u005d(")),
}


@pytest.mark.parametrize("row", ESCAPES)
async def test_names_and_images_are_known_by_their_escapes_too(row: str, always: Callable[[bool], None]) -> None:
    """A client may write any character of a name or a text as an escape."""
    door, make = DOORS[row]
    text, plain, forms = ESCAPES[row]
    for escaped in forms:
        body = json.dumps({"model": "m", **make(TEXTS[text])}).replace(plain, escaped).encode()
        always(False)
        wanted = await outcomes(door, body)
        always(True)
        assert await outcomes(door, body) == wanted, escaped


def chat_picture(uri: str, data: str) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": uri, "detail": "low"}},
        {"type": "image_url", "image_url": uri},
    ]
    return {"messages": [{"role": "user", "content": parts}]}


def chat_file(uri: str, data: str) -> dict[str, Any]:
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": uri}}
    heard = {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}}
    return {"messages": [{"role": "user", "content": [file, heard]}]}


def messages_picture(uri: str, data: str) -> dict[str, Any]:
    source = {"type": "base64", "media_type": "image/png", "data": data}
    call = {"type": "tool_use", "id": "c", "name": "f", "input": {"data": data, "url": uri}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image", "source": source}]}
    paper = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": data}}
    return {
        "max_tokens": 9,
        "messages": [
            {"role": "user", "content": [{"type": "image", "source": source}]},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result, paper, {"type": "image", "source": {"type": "url", "url": uri}}]},
        ],
    }


def messages_file(uri: str, data: str) -> dict[str, Any]:
    source = {"type": "base64", "media_type": "application/pdf", "data": data}
    return {"max_tokens": 9, "messages": [{"role": "user", "content": [{"type": "document", "source": source}]}]}


def responses_picture(uri: str, data: str) -> dict[str, Any]:
    image = {"type": "input_image", "image_url": uri}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": json.dumps({"data": data})}
    shown = {"type": "function_call_output", "call_id": "c", "output": [image]}
    made = {"type": "image_generation_call", "id": "ig", "status": "completed", "result": data}
    return {"input": [{"role": "user", "content": [image]}, made, call, shown]}


def responses_file(uri: str, data: str) -> dict[str, Any]:
    parts = [
        {"type": "input_file", "filename": "a.pdf", "file_data": uri},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
    ]
    return {"input": [{"role": "user", "content": parts}]}


def ollama_picture(uri: str, data: str) -> dict[str, Any]:
    call = {"function": {"name": "f", "arguments": {"data": data}}}
    return {
        "messages": [
            {"role": "user", "content": "x", "images": [data, uri]},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "ok"},
        ]
    }


PICTURED: dict[str, tuple[str, Callable[[str, str], dict[str, Any]]]] = {
    "chat": ("chat", chat_picture),
    "chat, files": ("chat", chat_file),
    "messages": ("messages", messages_picture),
    "messages, files": ("messages", messages_file),
    "responses": ("responses", responses_picture),
    "responses, files": ("responses", responses_file),
    "ollama": ("ollama", ollama_picture),
}
HEADS = ("data:image/png;base64,", "DATA:image/PNG;a=b;BASE64,", "data:image/png,", f"data:{'x' * 300};base64,", "")


async def outcomes(door: str, body: bytes) -> list[Any]:
    """What the door makes of a request, and each dialect of that; or the refusals."""
    found: list[Any] = []
    try:
        call, _ = await read(door, body)
        found.append(json.loads(call.body))
    except ProxyError as error:
        return [(type(error), str(error), error.param)]
    for write in WIRES.values():
        try:
            found.append(json.loads(write(call)))
        except ProxyError as error:
            found.append((type(error), str(error), error.param))
    return found


@pytest.mark.parametrize("row", PICTURED)
async def test_a_picture_is_translated_or_refused_as_if_it_were_decoded(
    row: str, always: Callable[[bool], None]
) -> None:
    """Whatever its base64 is like, in each member that holds one: the same bytes, or the same error."""
    door, make = PICTURED[row]
    for name, data in PICTURES.items():
        for head in HEADS:
            for slash in ("/", "\\/"):
                asked = json.dumps({"model": "m", **make(head + data, data)}, ensure_ascii=False)
                body = asked.replace("/", slash).encode()
                always(False)
                wanted = await outcomes(door, body)
                always(True)
                assert await outcomes(door, body) == wanted, (name, head, slash)


async def continued(items: list[dict[str, Any]]) -> Call:
    """The call for a short request that continues a response which began with `items`."""
    opened = Opened()
    opened.store.keep(None, Stored("resp_1", b"{}", tuple(json.dumps(item).encode() for item in items), ()))
    asked = {"model": "m", "store": False, "previous_response_id": "resp_1", "input": "hi"}
    reading = opened.door.read(json.dumps(asked).encode(), Client("r", None))
    call, _ = reading if isinstance(reading, tuple) else await reading
    return call


async def test_what_a_request_continues_is_translated_as_if_it_were_decoded(always: Callable[[bool], None]) -> None:
    """Each item stands for itself, and has its own texts and pictures."""
    shown = responses_picture("data:image/png;base64," + PNG, PNG)["input"]
    for name, text in TEXTS.items():
        items = [*responses(text)["input"], *responses(text + "!")["input"], *shown]
        found: list[list[Any]] = []
        for carried in (False, True):
            always(carried)
            call = await continued(items)
            found.append([json.loads(each) for each in (call.body, *[write(call) for write in WIRES.values()])])
        assert found[0] == found[1], name


async def test_what_a_request_continues_is_not_held_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """But once, in the chat: a text with an emoji takes four bytes for each character."""
    monkeypatch.setattr(joined, "_APART", MIB)  # none of whose pages is touched, but tracemalloc counts them
    text = {"type": "input_text", "text": "x" * 4 * MIB + GRIN}
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        call = await continued([{"type": "message", "role": "user", "content": [text]}])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(call.body) > 4 * MIB
    assert most - before < 14 * MIB


async def test_a_long_schema_is_not_held_while_the_answer_is_made() -> None:
    """Its values take ten times their bytes, and did so twice where a provider's format needs them: 129 MiB for 5."""
    values = [f"value {n}" for n in range(30_000)]
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"a": {"enum": values}}}}
    asked = {"model": "m", "tools": [tool], "input": [{"role": "user", "content": "hi"}]}
    body = json.dumps(asked).encode()
    tracemalloc.start()
    try:
        call, reply = await read("responses", body)
        await until(lambda: tracemalloc.get_traced_memory()[0] < 4 * len(body))  # freed in a thread
    finally:
        tracemalloc.stop()
    assert len(call.body) > 400_000
    assert reply is not None


async def test_a_text_beside_reasoning_is_not_held_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a chat of Ollama's: but twice, since Ollama alone gets the reasoning of earlier turns."""
    monkeypatch.setattr(joined, "_APART", MIB)  # none of whose pages is touched, but tracemalloc counts them
    turns = [{"role": "user", "content": "x" * 4 * MIB + GRIN}, {"role": "assistant", "content": "", "thinking": "hm"}]
    body = json.dumps({"model": "m", "messages": turns}, ensure_ascii=False).encode()
    tracemalloc.start()
    try:
        call, _ = await read("ollama", body)
        sent = ollama.build(call, ENTRY).body
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert b'"thinking":"hm"' in sent
    assert most < 14 * MIB


def test_only_base64_gets_a_stand_in_that_is_base64(always: Callable[[bool], None]) -> None:
    """It begins as the data does, and is as valid."""
    always(True)
    fields, texts = read_texts(json.dumps({"url": "data:image/png;base64," + PNG, "data": PNG}).encode())
    assert all(len(each) < 400 for each in fields.values())
    assert fields["url"] == "data:image/png;base64," + fields["data"][:256] + fields["url"][278:]
    assert base64.b64decode(fields["data"], validate=True).startswith(b"\x89PNG")
    assert texts.encode_whole(fields["data"]) == json.dumps(PNG).encode()
    with pytest.raises(Exception, match=r"^$"):
        texts.encode_whole(fields["data"][:-1])
    for name, data in PICTURES.items():
        read_back, _ = read_texts(json.dumps({"data": data}).encode())
        is_base64 = name in ("as most", "of another length", "unpadded", "in the other alphabet")
        assert (read_back["data"] == data) is not is_base64, name


def test_long_strings_are_found_where_they_are() -> None:
    """Members, and lists of them as far as they are long: elsewhere there is no name to tell by."""
    long = "y" * 5000
    fields = {
        "a": long,
        "list": [long, ": ", long],
        "b": {"c": 'q"' * 5000},
        "short": "y" * 4000,
        "e": [long, long + "e"],
        "d": long + "\\",
    }
    for text in (json.dumps(fields), json.dumps(fields, indent=9), json.dumps(fields).replace(": ", " :" + " " * 90)):
        body = text.encode()
        found = [(each.key.decode(), body[each.start : each.end]) for each in long_strings(body, 0, len(body), 4096)]
        assert [(key, json.loads(b'"%b"' % value)) for key, value in found] == [
            ("a", long),
            ("list", long),
            ("c", 'q"' * 5000),
            ("e", long),
            ("e", long + "e"),
            ("d", long + "\\"),
        ]
    blank = ('{"a":' + " " * 9000 + '"b","c":[' + "1," * 9000 + "1]}").encode()
    assert not [*long_strings(blank, 0, len(blank), 4096)]
    body = json.dumps({"a": long}).encode()
    assert [*long_strings(body, 6, len(body) - 1, 4096)] == [LongString(b"a", 7, 5007)]


def test_a_stand_in_that_was_changed_is_not_sent(always: Callable[[bool], None]) -> None:
    """Rather than a text without most of it."""
    always(True)
    fields, texts = read_texts(json.dumps({"text": "x" * 9000}).encode())
    (stand_in,) = fields.values()
    assert len(stand_in) < 400
    assert texts.encode_whole([stand_in]) == json.dumps(["x" * 9000]).encode()
    with pytest.raises(Exception, match=r"^$"):
        texts.encode_whole(stand_in[:-1])


def asked_again(call: Call, entry: Entry) -> Request:
    """What is sent once the model has refused to think."""
    request = OllamaWire().reshape(call, entry, 400, b'{"error":"m does not support thinking"}')
    assert request is not None
    return request


@pytest.mark.parametrize(("number", "most_mib"), [(1, 1), (1000, 3)])
@pytest.mark.parametrize("wire", [*WIRES, "ollama, asked again"])
def test_a_long_text_is_not_held_again(wire: str, number: int, most_mib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One emoji in each of some texts, and Python holds four bytes for each character of these."""
    monkeypatch.setattr(joined, "_APART", MIB)  # none of whose pages is touched, but tracemalloc counts them
    text = "x" * (2 * MIB // number) + GRIN
    asked = {"model": "m", "reasoning_effort": "low", "messages": [{"role": "user", "content": text}] * number}
    body = json.dumps(asked, ensure_ascii=False).encode()
    call = Call(Endpoint.CHAT, read_summary(body, ("messages", list)), body, "r", is_large=True)
    build = {"ollama": ollama.build, "google": gemini.build}.get(wire, asked_again)
    tracemalloc.start()
    try:
        request = build(call, ENTRY)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(request.content) > 2 * MIB
    assert most < most_mib * MIB


@pytest.mark.parametrize("door", ["messages", "responses"])
async def test_many_short_texts_are_not_held_again(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one message, with an emoji each: nor are they joined."""
    monkeypatch.setattr(stand_ins, "LEAST", 1000)
    monkeypatch.setattr(stand_ins, "_MANY", 1000)
    monkeypatch.setattr(stand_ins, "_MUCH", 1000)
    monkeypatch.setattr(joined, "_APART", 1000)
    kind = "text" if door == "messages" else "input_text"
    turn = {"role": "user", "content": [{"type": kind, "text": "x" * 200 + GRIN}] * 2000}
    asked = {"model": "m", "max_tokens": 9, "messages": [turn], "input": [turn], "store": False}
    del asked["input" if door == "messages" else "messages"]
    body = json.dumps(asked, ensure_ascii=False).encode()
    tracemalloc.start()
    try:
        call, _ = await read(door, body)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(call.body) > 400_000
    assert most < 4 * len(body)


@pytest.mark.parametrize(
    ("door", "store", "is_usual"),
    [
        ("messages", False, True),
        ("messages", False, False),
        ("responses", False, True),
        ("responses", True, True),
        ("responses", True, False),
        ("ollama", False, True),
        ("generate", False, True),
    ],
)
async def test_a_picture_is_not_held_again(
    door: str, store: bool, is_usual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a door it is copied once, into the chat, and once to be stored; to a provider it is sent from there. If
    it is in the other alphabet and not padded, Gemini gets a copy that is, and Ollama none at all."""
    monkeypatch.setattr(joined, "_APART", MIB)  # none of whose pages is touched, but tracemalloc counts them
    data = "iVBORw0KGgoA" + ("A" * 2 * MIB if is_usual else "Ab_-" * (MIB // 2) + "AA")
    if door in ("ollama", "generate"):
        turn = {"role": "user", "content": "x", "images": [data[:MIB], data[:MIB]]}
        asked: dict[str, Any] = {"messages": [turn]} if door == "ollama" else {"prompt": "x", "images": turn["images"]}
        del turn
    elif door == "messages":
        picture: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
        asked = {"max_tokens": 9, "messages": [{"role": "user", "content": [picture]}]}
        del picture
    else:
        picture = {"type": "input_image", "image_url": "data:image/png;base64," + data}
        asked = {"store": store, "input": [{"role": "user", "content": [picture]}]}
        del picture
    body = json.dumps({"model": "m", **asked}).encode()
    del data, asked
    tracemalloc.start()
    try:
        call, _ = await read(door, body)
        _, most = tracemalloc.get_traced_memory()
        assert most < (5.5 if store else 3) * MIB
        for build in (ollama.build, gemini.build) if is_usual else (gemini.build,):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            assert len(build(call, ENTRY).content) >= 2 * MIB
            _, most = tracemalloc.get_traced_memory()
            assert most - before < (1 if is_usual else 3) * MIB
    finally:
        tracemalloc.stop()
