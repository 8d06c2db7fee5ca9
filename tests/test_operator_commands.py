"""``explain`` and ``requests``: what they print of a running proxy, and what they say when there is none."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
from pathlib import Path

import pytest
import trustme

from tests.command import start
from tests.proxy import openai, process, proxy, run, settings

LOOP = {"loop": {"kind": "loopback"}}


async def test_explain(tmp_path: Path) -> None:
    """The one that would serve is marked; all aliases by ``*``; JSON is the route's own."""
    providers = {"keyless": openai("http://127.0.0.1:9", api_key="${NOSUCH}"), **LOOP}
    config = settings(providers)
    config["aliases"]["mana/two"] = {"chain": ["loop/n"]}
    each = [
        *("mana/test: loop/m would serve", "  keyless/m  unconfigured  NOSUCH is not set", "> loop/m     ready"),
        *("mana/two: loop/n would serve", "> loop/n  ready"),
    ]
    async with proxy(config, tmp_path) as p:
        code, output = await run("explain", "mana/test", "--url", p.url)
        assert (code, output.splitlines()) == (0, each[:3])
        code, output = await run("explain", "--json", "--url", p.url)
        assert (code, json.loads(output)["serves"]) == (0, "loop/m")
        code, output = await run("explain", "*", "--url", p.url)
        assert (code, output.splitlines()) == (0, each)
        code, output = await run("explain", "*", "--json", "--url", p.url)
        assert (code, [found["model"] for found in json.loads(output)["models"]]) == (0, ["mana/test", "mana/two"])
        code, output = await run("explain", "mana/tset", "--url", p.url)
        assert (code, "Did you mean mana/test?" in output) == (1, True)


async def test_requests(tmp_path: Path) -> None:
    """The latest last, as a log; what a client sent cannot move a terminal's cursor."""
    async with proxy(settings(LOOP), tmp_path) as p:
        await p.chat()
        await p.chat(model="mana/\x1b[2Jx")
        code, output = await run("requests", "--url", p.url)
        first, second = output.splitlines()
        assert code == 0 and "loop/m  ok" in first and "mana/?[2Jx -> nobody  error 404 model_not_found" in second
        id_ = first.split()[-1]
        code, output = await run("requests", id_, "--url", p.url)
        assert code == 0 and "loop/m  served" in output.splitlines()[1]
        code, output = await run("requests", "--json", "--outcome", "ok", "--url", p.url)
        assert (code, [row["id"] for row in json.loads(output)["requests"]]) == (0, [id_])
        code, output = await run("requests", "--outcome", "bad", "--url", p.url)
        assert code == 2 and "client_gone" in output


async def test_a_request_that_was_refused_unread_asked_for_nothing(tmp_path: Path) -> None:
    """Its model is not known: it is not said to be the default one, as that of a request which names none."""
    async with proxy(settings(LOOP), tmp_path) as p:
        await p.chat(model=None)
        async with p.client.post(f"{p.url}/v1/chat/completions", data=b"[]") as response:
            assert response.status == 400
        _, output = await run("requests", "--url", p.url)
        first, second = output.splitlines()
        assert "  (default) -> loop/m  ok" in first and "  - -> nobody  error 400 invalid_request" in second


async def test_why_a_provider_is_not_reached_is_said_wherever_it_is_down(tmp_path: Path) -> None:
    """Refused, no such name, an expired certificate: all are a connect_error, and each is mended elsewhere."""
    async with proxy(settings({"gpu": openai("http://127.0.0.1:9")}), tmp_path) as p:
        for _ in range(2):
            assert (await p.chat())[0] == 503
        assert '"now":"unhealthy","reason":"connect_error","detail":"refused"' in p.log.getvalue()
        assert (await p.get("/v1/health"))[1]["providers"]["gpu"]["detail"] == "refused"
        assert "connect_error: refused, until " in (await run("status", "--url", p.url))[1]
        assert "connect_error: refused; again in " in (await run("explain", "--url", p.url))[1]


async def test_requests_follow(tmp_path: Path) -> None:
    """A line as each ends; the end of the proxy is the end of the command, in words."""
    async with process(settings(LOOP), tmp_path) as running:
        child = await start("requests", "--follow", "--url", running.url, environ=os.environ)
        assert child.stdout is not None
        reading = asyncio.ensure_future(child.stdout.readline())
        async with asyncio.timeout(20):
            while not reading.done():  # until it looks on nobody tells it anything
                await asyncio.sleep(0.1)
                await _chat(running.url)
        assert b"loop/m  ok" in reading.result()
        running.child.terminate()
        assert await asyncio.wait_for(child.wait(), 40) == 1
        assert child.stderr is not None
        assert b"has ended the connection" in await child.stderr.read()


async def _chat(url: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(b'POST /v1/chat/completions HTTP/1.0\r\nHost: x\r\nContent-Length: 15\r\n\r\n{"messages":[]}')
    await reader.read()
    writer.close()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--limit", "x"), "argument --limit: 'x' is no number of requests (1 to 1000)"),
        (("--limit", "0"), "argument --limit: '0' is no number of requests (1 to 1000)"),
        (("--outcome", "failed"), "argument --outcome: invalid choice: 'failed'"),
    ],
)
async def test_a_wrong_filter_is_a_mistake_of_usage(arguments: tuple[str, ...], wanted: str) -> None:
    """Exit code 2, whether a proxy runs or not."""
    code, output = await run("requests", "--url", "http://127.0.0.1:9", *arguments)
    assert (code, wanted in output) == (2, True), output


async def test_an_address_of_the_wrong_scheme_is_said_to_be_one(tmp_path: Path) -> None:
    """Something answers, so "start one" would mislead; a certificate of one's own is named."""
    async with proxy(settings(LOOP), tmp_path) as p:
        code, output = await run("status", "--url", p.url.replace("http:", "https:"))
    place = p.url.removeprefix("http://")
    assert (code, output) == (1, f"what answers at {place} speaks no TLS: its address may have to begin with http://\n")
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=context)
    async with server:
        place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        code, output = await run("status", "--url", f"https://{place}")
    assert code == 1
    assert output.startswith(
        f"the TLS certificate of {place} is not trusted (unable to get local issuer certificate): "
    )


async def test_what_they_say_when_it_is_not_to_be_had(tmp_path: Path) -> None:
    """No proxy: its address. A key wanted: where it goes."""
    code, output = await run("explain", "--url", "http://127.0.0.1:9")
    assert code == 1 and "no proxy answers at 127.0.0.1:9" in output
    keys = [{"name": "root", "sha256": hashlib.sha256(b"root").hexdigest(), "admin": True}]
    async with proxy(settings(LOOP, auth={"keys": keys}), tmp_path) as p:
        code, output = await run("requests", "--url", p.url)
        assert code == 1 and "MANALLM_API_KEY" in output
        code, output = await run("requests", "--url", p.url, environ={"MANALLM_API_KEY": "root"})
        assert code == 0
