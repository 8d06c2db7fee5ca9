"""Commands that ask a running proxy: ``chat``, ``try``, ``models``, ``status``."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import shlex
import signal
import socket
import sys
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy import __version__
from manallm_proxy.__main__ import parser
from manallm_proxy.cli import client
from manallm_proxy.cli.chat import ChatResult, parts, report
from manallm_proxy.cli.client import NAME_LIMIT, Client, Failed
from manallm_proxy.cli.status import table
from tests.cases import every
from tests.command import DEVNULL, ROOT, STDOUT, start
from tests.ports import free_port
from tests.proxy import openai, proxy, run, settings, written
from tests.upstreams import Connection, Seen, answers, chunk, each, status, upstream
from tests.waiting import until

pytestmark = pytest.mark.built_in


def test_the_help_of_every_command_fits_one_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 lines of 80 columns, the shell's next prompt included."""
    monkeypatch.setenv("COLUMNS", "80")
    top = parser()
    [commands] = [action.choices for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    assert len(commands) > 8
    for name, command in {"": top, **commands}.items():
        lines = command.format_help().splitlines()
        assert (len(lines) < 24, max(map(len, lines)) <= 80) == (True, True), name
        assert "--help" in command.format_help()


def test_every_command_tells_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """As the program itself does; it is an option of its own, which nobody has to be told of."""
    [commands] = [action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    for name in ("", *commands):
        with pytest.raises(SystemExit) as ended:
            parser().parse_args([name, "--version"] if name else ["--version"])
        assert (ended.value.code, capsys.readouterr().out) == (0, f"manallm-proxy {__version__}\n"), name


async def test_a_chat_is_streamed_and_then_told_who_answered(tmp_path: Path) -> None:
    """The answer, then one line; --json prints one value; a model may be named; standard input may be the text."""
    async with upstream(each(answers), ["m"]) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        code, output = await run("try", "--url", p.url)
        answer, told = output.splitlines()
        assert (code, answer) == (0, "Hello")
        assert told.startswith("-- gpu/m, 1 attempt, first token after 0.")
        assert gpu.posts[-1].json["messages"] == [{"role": "user", "content": "Hello"}]
        code, output = await run("chat", "--json", "--url", f"{p.url}/v1/", "-m", "gpu/m", "What?")
        value = json.loads(output)
        assert (code, value["answer"], value["model"], value["attempts"], value["tokens"]) == (
            0,
            "Hello",
            "gpu/m",
            1,
            2,
        )
        code, output, _ = await piped(["chat", "-", "--url", p.url], b"from a pipe \xff")
        assert (code, output.splitlines()[0]) == (0, "Hello")
        assert gpu.posts[-1].json["messages"][0]["content"] == "from a pipe �"
        code, _, errors = await piped(["chat", "--url", p.url], b" \n")
        assert (code, errors) == (2, "there is no text to send: give it as TEXT, or on standard input\n")


async def piped(arguments: list[str], text: bytes, folder: Path = ROOT, **environ: str) -> tuple[int | None, str, str]:
    """Exit code, standard output and standard error of a command that reads `text`."""
    child = await start(*arguments, environ={**os.environ, **environ}, folder=folder, text=text)
    output, errors = await asyncio.wait_for(child.communicate(), 40)
    return child.returncode, output.decode(), errors.decode()


def test_an_answer_of_another_shape_is_a_break_and_no_traceback() -> None:
    """A provider's events are relayed as they are."""
    for event in (b"[]", b"5", b'{"choices":[1]}', b'{"choices":[{"delta":"x"}]}', b'{"usage":5,"choices":[]}'):
        heard = ChatResult(0.0)
        assert list(parts(io.BytesIO(b"data: " + event + b"\n"), heard)) == []
        assert str(heard.error).startswith("the answer broke off (")
    heard = ChatResult(0.0)
    assert (list(parts(io.BytesIO(b'data: {"error":"no room"}\n'), heard)), heard.error) == ([], "no room")


def test_the_line_behind_an_answer_says_how_fast_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """Who answered, after how many attempts, the time to the first token, and the rate of those after it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 200 OK\r\nX-Mana-LLM-Resolved: gpu/m\r\nX-Mana-LLM-Attempts: 2\r\n\r\n")
        response = HTTPResponse(ours)
        response.begin()
        heard = ChatResult(began=10.0, text="Hello", first_at=10.5, last_at=12.5, tokens=41)
        report(response, heard, False, {})
        response.close()
    assert capsys.readouterr().out == "\n-- gpu/m, 2 attempts, first token after 0.50 s, 20 tokens/s\n"


async def test_a_chat_that_fails_says_why(tmp_path: Path) -> None:
    """The proxy's own words for a refusal; what breaks off is reported after what had come, and no escape passes."""

    async def breaks(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk("so \033[31mfar"))
        connection.reset()

    async with upstream(each(breaks)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        code, output, errors = await piped(["chat", "hi", "--url", p.url], b"")
        assert (code, output.splitlines()[0]) == (1, "so [31mfar")
        assert "broke off" in errors
        code, _, errors = await piped(["chat", "hi", "-m", "mana/absent", "--url", p.url], b"")
        assert (code, errors.count("\n"), errors[:4], "mana/test" in errors) == (1, 1, "404:", True)
    async with upstream(each(status("500 Oops"))) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        code, _, errors = await piped(["try", "--url", p.url], b"")
        assert (code, "no provider could serve mana/test" in errors) == (1, True)
    refuses = status("404 Not Found", {"detail": "Not Found"})
    async with upstream(each(refuses)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        code, _, errors = await piped(["try", "--url", p.url], b"")
        assert (code, errors) == (1, "404 from gpu/m: Not Found\n")  # else it reads as if the proxy were not there


async def test_health_is_a_table(tmp_path: Path) -> None:
    """A line for each provider and each target that has a state; no colours in a pipe."""
    providers = {"gpu": openai("http://127.0.0.1:9"), "groq": openai("http://x", api_key="${GROQ_KEY}")}
    async with proxy(settings(providers), tmp_path) as p:
        await p.chat()
        code, output = await run("status", "--url", p.url)
        assert (code, "\033" in output) == (0, False)
        lines = [line.split() for line in output.splitlines()]
        assert lines[0] == [f"127.0.0.1:{p.port}:", "unhealthy"]
        assert lines[1] == ["PROVIDER", "STATUS", "BUSY", "WHY"]
        assert lines[2][:5] == ["gpu", "unhealthy", "0", "connect_error:", "refused,"]
        assert lines[3] == ["groq", "unconfigured", "0", "GROQ_KEY", "is", "not", "set"]
        code, output = await run("status", "--url", p.url, "--json")
        assert (code, json.loads(output)["providers"]["gpu"]["status"]) == (0, "unhealthy")
        code, output = await run("models", "--url", p.url, "--json")
        assert (code, json.loads(output)["data"][0]["id"]) == (0, "mana/test")


async def test_a_wide_terminal_shows_whole_reasons(tmp_path: Path) -> None:
    """They end with the time until which a provider rests; where nothing tells the width it is 80 columns."""
    name = "a-provider-with-a-long-name-of-its-own"
    async with proxy(settings({name: openai("http://127.0.0.1:9")}), tmp_path) as p:
        await p.chat()
        for columns, ends in (("", "..."), ("140", " UTC")):
            _, output = await run("status", "--url", p.url, environ={"COLUMNS": columns})
            assert output.splitlines()[2].endswith(ends)


def test_a_table_fits_the_terminal() -> None:
    """Columns are aligned, a long reason is cut."""
    lines = table([("A", "B"), ("long", "x" * 100)])
    assert (lines[0], len(lines[1]), lines[1][-3:]) == ("A     B", 80, "...")


COMMANDS: list[list[str]] = [["chat", "hi"], ["try"], ["models"], ["status"]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
async def test_where_no_proxy_is(tmp_path: Path, command: list[str]) -> None:
    """Exit 1 and host:port; no address: 2; something else that answers: 1. Never a traceback."""
    port = free_port()
    code, output, errors = await piped([*command, "--url", f"http://127.0.0.1:{port}"], b"")
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert f"127.0.0.1:{port}" in errors
    assert "manallm-proxy serve" in errors
    assert (await piped([*command, "--url", "nonsense"], b""))[0] == 2
    async with upstream(each(status("200 OK", b"<html>")), ["m"]) as other:
        other.probe_status = "404 Not Found"
        code, _, errors = await piped([*command, "--url", other.url], b"")
        assert (code, "Traceback" in errors) == (1, False), errors
        assert f"127.0.0.1:{other.port}" in errors or "broke off" in errors


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
async def test_a_key_that_is_wanted_is_named(tmp_path: Path, command: list[str]) -> None:
    """Exit 1 and MANALLM_API_KEY, where there is none, one that is wrong, or one that is none for operators."""
    key = {"name": "a", "sha256": hashlib.sha256(b"sk-right").hexdigest()}
    async with upstream(each(answers)) as gpu:
        config = settings({"gpu": openai(gpu.url)}, auth={"keys": [key]})
        async with proxy(config, tmp_path) as p:
            for given in ("", "sk-wrong"):
                code, output, errors = await piped([*command, "--url", p.url], b"", MANALLM_API_KEY=given)
                assert (code, output, "MANALLM_API_KEY" in errors, "sk-wrong" in errors) == (1, "", True, False)
            code, _, errors = await piped([*command, "--url", p.url], b"", MANALLM_API_KEY="sk-right")
            assert (code, "admin" in errors) == ((1, True) if command == ["status"] else (0, False))


async def test_a_proxy_that_hangs_is_not_said_to_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to be looked at, and not to be started."""

    async def silent(connection: Connection) -> None:
        await connection.gone()

    monkeypatch.setattr(client, "TIMEOUT", 0.2)
    async with upstream(silent) as hangs:
        with pytest.raises(Failed) as told:
            await asyncio.to_thread(Client(hangs.url).get, "/v1/health", "show its health")
    place = f"127.0.0.1:{hangs.port}"
    assert (
        str(told.value)
        == f"what listens at {place} has said nothing for 0.2 s: it hangs (its log says more), or is no proxy"
    )


@every(
    [
        ("http://[::1", "is no address of a proxy"),
        ("http://[x]:1", "is no address of a proxy"),
        ("127.0.0.1:3025", "is no address of a proxy"),
        ("http://127.0.0.1:99999", "is no address of a proxy"),
        ("http://me:CANARY@127.0.0.1:1", "holds a user or a password; the proxy's key goes into MANALLM_API_KEY"),
    ]
)
def test_an_address_that_is_none(address: str, wanted: str) -> None:
    """Is told, without a password that it holds."""
    with pytest.raises(Failed) as told:
        Client.find(address, {})
    assert wanted in str(told.value) and told.value.code == 2
    assert "CANARY" not in str(told.value)


async def test_a_full_disk_is_no_traceback() -> None:
    """Of a command that prints much, and of one that prints little."""
    for command in ("schema", "completion bash"):
        line = f"{sys.executable} -m manallm_proxy {command} > /dev/full"
        child = await asyncio.create_subprocess_shell(line, stderr=asyncio.subprocess.PIPE, cwd=ROOT)
        _, errors = await child.communicate()
        assert (child.returncode, errors) == (1, b"standard output cannot be written: No space left on device\n")


async def test_the_proxy_of_the_local_configuration_is_found(tmp_path: Path) -> None:
    """By its port, or by its unix socket, which is beside the file that names it."""
    (tmp_path / "config").mkdir()
    listens: list[dict[str, Any]] = [{"port": free_port()}, {"unix": "proxy.sock"}]
    for listen in listens:
        config = settings({"loop": {"kind": "loopback"}})
        config["listen"] = listen
        (tmp_path / "config/proxy.yaml").write_text(written(config))
        environ = {**os.environ, "JOURNAL_STREAM": "1:1"}
        child = await start("serve", environ=environ, folder=tmp_path, stdout=DEVNULL)
        try:
            assert child.stderr is not None
            async with asyncio.timeout(10):
                while b"started" not in await child.stderr.readline():
                    pass
            for command in COMMANDS:
                code, output, errors = await piped(command, b"", tmp_path)
                assert (code, "loop" in output) == (0, True), errors
        finally:
            child.kill()
            await child.communicate()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_what_a_shell_needs_to_complete(shell: str, tmp_path: Path) -> None:
    """Every command and its long options; bash itself completes with it."""
    code, output = await run("completion", shell)
    assert code == 0
    for word in ("hash-key", "offline-ok", "discover"):
        assert word in output
    if shell == "bash":
        (tmp_path / "it").write_text(output)
        for typed, wanted in (
            ("check --off", "--offline-ok"),
            ("completion ''", "bash zsh fish --help"),
            ("requests --outcome ''", "ok error client_gone broken"),
            ("requests --outcome cl", "client_gone"),
        ):
            place = len(shlex.split(typed))
            words = f"COMP_WORDS=(manallm-proxy {typed}); COMP_CWORD={place}; _manallm_proxy; echo ${{COMPREPLY[@]}}"
            child = await asyncio.create_subprocess_exec(
                *("bash", "-c", f"source {tmp_path}/it; {words}"), stdout=asyncio.subprocess.PIPE
            )
            assert (await child.communicate())[0].decode() == f"{wanted}\n"
    if shell == "fish":
        assert "%(default)s" not in output
        assert "complete -c manallm-proxy -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'" in output
        assert " -l outcome -d 'only with this outcome (ok, error, client_gone, broken)' -x -a 'ok error" in output


@pytest.mark.parametrize(
    "command", ["serve", "check", "init", "try", "chat", "models", "status", "hash-key", "completion"]
)
async def test_help_fits_one_screen(command: str) -> None:
    """24 lines of 80 columns."""
    code, output = await run(command, "--help", environ={"COLUMNS": "80"})
    lines = output.splitlines()
    assert (code, len(lines) <= 24, max(map(len, lines)) <= 80) == (0, True, True)


async def test_names_are_shown_on_one_line_each() -> None:
    """Whatever lists them: nothing that a terminal obeys, no line break, and not for ever."""

    async def script(connection: Connection) -> None:
        while await connection.request() is not None:
            rows = [{"id": name} for name in ("a\nb", "\x1b]0;x\x07", "\u202egnp", "m" * 5000)]
            await connection.reply({"object": "list", "data": rows})

    async with upstream(script) as server:
        code, output = await run("models", "--url", server.url)
    assert code == 0
    assert [line[:12] for line in output.splitlines()] == ["a?b", "?]0;x?", "?gnp", "m" * 12]
    assert max(map(len, output.splitlines())) <= NAME_LIMIT + 1


async def test_ctrl_c_ends_a_command_without_a_word(tmp_path: Path) -> None:
    """While it waits for a server that says nothing: 130, as of any program that SIGINT ends, and no traceback."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.gone()

    (tmp_path / "proxy.yaml").write_text("providers: {a: {kind: ollama, base_url: '${OLLAMA_URL}'}}\naliases: {}")
    for command in (["check", "--live"], ["init", str(tmp_path / "new")], ["serve", "--discover"], ["status"]):
        async with upstream(script) as silent:
            environ = {**os.environ, "OLLAMA_URL": silent.url, "MANALLM_CONFIG": str(tmp_path / "proxy.yaml")}
            arguments = [*command, "--url", silent.url] if command == ["status"] else command
            child = await start(*arguments, environ=environ, stderr=STDOUT)
            await until(silent.seen.copy)
            child.send_signal(signal.SIGINT)
            output, _ = await asyncio.wait_for(child.communicate(), 40)
        assert (child.returncode, output.decode()) == (130, ""), command


async def test_what_is_no_proxy_is_told_in_a_line() -> None:
    """JSON of any other shape, from whatever has taken the port, or from a version to come."""
    answered = b""

    async def script(connection: Connection) -> None:
        while await connection.request() is not None:
            await connection.reply(answered)

    deep = b"[" * 100_000
    row = b'{"providers": {"a": {"status": 1, "targets": {"m": 4}}}}'
    many = b'{"alias": null, "model": null, "serves": null, "chain": [{"target": 1}], "requests": [1], "data": [1]}'
    cases = [
        *(("explain", body) for body in (b"{}", b"[]", many, deep)),
        *(("requests", body) for body in (b"{}", b"[]", many, deep)),
        *(("requests id", body) for body in (b"{}", b"[]", many)),
        *(("status", body) for body in (b"{}", b'{"providers": {"a": 1}}', row, deep)),
        *(("models", body) for body in (b"{}", many, deep)),
    ]
    async with upstream(script) as other:
        where = other.url.removeprefix("http://")
        for command, answered in cases:
            code, output = await run(*command.split(), "--url", other.url)
            assert code == 1, (command, answered[:80])
            assert output.startswith(f"no proxy answers at {where}: what answers there is something else"), output


async def test_what_is_no_text_is_sent_as_it_was_typed(tmp_path: Path) -> None:
    """Names in another encoding than UTF-8; the proxy knows none of them, and says so."""
    async with proxy(settings({"loop": {"kind": "loopback"}}), tmp_path) as p:
        for command in (("explain", "\udcff"), ("requests", "\udcff"), ("requests", "--alias", "\udcff")):
            code, output = await run(*command, "--url", p.url)
            assert (code, output.partition(" refuses: ")[0]) == (1, f"the proxy at 127.0.0.1:{p.port}"), output


async def test_a_key_that_no_header_takes_is_not_shown() -> None:
    """Two lines, or letters that are none of a key's: said before anything is sent, without the key."""
    for key in ("sk-one\nsk-two", "sk-\N{CYRILLIC SMALL LETTER EM}one", "sk-\udcffone"):
        code, output = await run("models", "--url", "http://127.0.0.1:9", environ={"MANALLM_API_KEY": key})
        assert (code, output) == (1, "what MANALLM_API_KEY holds is no key: a key is visible ASCII without blanks\n")


async def test_a_place_that_may_not_be_looked_at_is_told_in_a_line(tmp_path: Path) -> None:
    """See `test_config`; commands that ask a proxy go on with the usual address."""
    closed = f"/{'x' * 300}"
    environ = {"MANALLM_CONFIG": f"{closed}/proxy.yaml"}
    for command, code, said in (
        (["check"], 78, f"{closed}/proxy.yaml: cannot be read (File name too long)"),
        (["serve"], 78, f"{closed}/proxy.yaml: cannot be read (File name too long)"),
        (["check", "--credentials", closed], 78, f"--credentials: {closed} is no folder"),
        (["init", closed], 1, f"{closed}: cannot be written (File name too long)"),
    ):
        found, output = await run(*command, environ=environ)
        assert (found, said in output.splitlines()) == (code, True), output  # init says what servers it finds here, too
        assert "Traceback" not in output
    assert "Traceback" not in (await run("models", environ=environ))[1]
