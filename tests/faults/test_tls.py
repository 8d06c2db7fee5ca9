"""TLS, in a process of its own that trusts one authority of the test's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
import trustme

from tests.faults.dialects import DIALECTS
from tests.proxy import openai, process, run, settings
from tests.upstreams import Connection, Upstream, answers, each, upstream
from tests.waiting import until

pytestmark = pytest.mark.built_in

HI = {"messages": [{"role": "user", "content": "hi"}]}
WHY = {
    "stranger": "tls: ",
    "wrong": "tls: ",
    "expired": "tls: certificate has expired",
    "plain": "tls: handshake failed",
}


@asynccontextmanager
async def tls(certificate: trustme.LeafCert) -> AsyncIterator[Upstream]:
    """A good provider behind `certificate`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    made = Upstream(each(answers))
    made.context = context
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
        made.release()


async def plain_http(connection: Connection) -> None:
    """What a web server says to a handshake."""
    await connection.reader.read(1)
    await connection.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


async def says_nothing(connection: Connection) -> None:
    await connection.gone()


KINDS = ("openai", "google")
"""They share one implementation of TLS; the key travels in another header."""


async def test_who_is_not_trusted_gets_nothing(tmp_path: Path) -> None:
    """A stranger's, a wrong, an expired certificate, no TLS at all: passed with the reason; the good one serves."""
    ours, theirs = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    past = datetime.now(UTC) - timedelta(days=1)
    certificates = {
        "stranger": theirs.issue_cert("127.0.0.1"),
        "wrong": ours.issue_cert("elsewhere.test"),
        "expired": ours.issue_cert("127.0.0.1", not_before=past - timedelta(days=9), not_after=past),
    }
    async with AsyncExitStack() as open_until_the_end:
        servers = {n: await open_until_the_end.enter_async_context(tls(c)) for n, c in certificates.items()}
        servers["plain"] = await open_until_the_end.enter_async_context(upstream(plain_http))
        good = await open_until_the_end.enter_async_context(tls(ours.issue_cert("127.0.0.1")))
        providers = {
            f"{kind}-{name}": DIALECTS[kind].config(f"https://127.0.0.1:{server.port}")
            for kind in KINDS
            for name, server in servers.items()
        }
        config = settings({**providers, "good": openai(f"https://127.0.0.1:{good.port}")})
        config["aliases"]["mana/none"] = {"chain": [f"{name}/m" for name in providers]}
        environ = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        async with process(config, tmp_path, environ) as running, aiohttp.ClientSession() as client:
            url = f"{running.url}/v1/chat/completions"
            async with client.post(url, json={**HI, "model": "mana/none"}) as response:
                assert response.status == 503
                error = (await response.json())["error"]
                attempts = error["attempts"]
            assert "is not trusted (certificate has expired): renew it" in error["message"]
            assert f"what answers at https://127.0.0.1:{servers['plain'].port}/v1 speaks no TLS" in error["message"]
            assert len(attempts) == len(providers)
            for attempt in attempts:
                name = attempt["model"].partition("/")[0].partition("-")[2]
                assert attempt["reason"] == "connect_error"
                assert attempt["detail"].startswith(WHY[name]), attempt
            async with client.post(url, json={**HI, "model": "mana/test"}) as response:
                assert response.status == 200
                assert response.headers["X-Mana-LLM-Resolved"] == "good/m"
            assert not any(server.seen for server in servers.values())
            assert "Traceback" not in "".join(running.output)


async def test_verification_is_not_switched_off_in_silence(tmp_path: Path) -> None:
    """`verify_tls: false` lets a stranger in, for that provider alone; log and `check` say so."""
    theirs = trustme.CA()
    async with tls(theirs.issue_cert("127.0.0.1")) as lax, tls(theirs.issue_cert("127.0.0.1")) as strict:
        urls = {name: f"https://127.0.0.1:{server.port}" for name, server in (("lax", lax), ("strict", strict))}
        config = settings({"strict": openai(urls["strict"]), "lax": openai(urls["lax"], verify_tls=False)})
        async with process(config, tmp_path) as running, aiohttp.ClientSession() as client:
            async with client.post(f"{running.url}/v1/chat/completions", json=HI) as response:
                assert response.headers["X-Mana-LLM-Resolved"] == "lax/m"
            assert strict.seen == []
            os.kill(running.pid, signal.SIGHUP)
            await until(lambda: sum("certificates are not verified" in line for line in running.output) >= 2)
            told = [json.loads(line) for line in running.output if "certificates are not verified" in line]
            assert {(line["level"], line["provider"]) for line in told} == {("warning", "lax")}
        code, said = await run("check", "--config", str(tmp_path / "proxy.yaml"))
        assert code == 0
        assert "providers.lax: its certificate is not verified" in said
        assert "providers.strict" not in said


async def test_a_handshake_that_hangs_costs_connect(tmp_path: Path) -> None:
    """TCP is there, TLS says nothing."""
    async with upstream(says_nothing) as silent, upstream(each(answers)) as good:
        hangs = openai(f"https://127.0.0.1:{silent.port}", timeouts={"connect": 0.3})
        config = settings({"bad": hangs, "good": openai(good.url)}, health={"probe_timeout": 0.2})
        async with process(config, tmp_path) as running, aiohttp.ClientSession() as client:
            url = f"{running.url}/v1/chat/completions"
            started = asyncio.get_running_loop().time()
            async with client.post(url, json=HI) as response:
                assert response.headers["X-Mana-LLM-Resolved"] == "good/m"
            assert asyncio.get_running_loop().time() - started < 2
            assert any('"reason":"connect_timeout"' in line for line in running.output)
