"""What an operator reads of a provider that was not reached: the mend has to fit what is wrong."""

from __future__ import annotations

import hashlib
import socket
import ssl
from pathlib import Path

from attrs import evolve

from manallm_proxy.config.model import ProviderConfig
from manallm_proxy.contract.provider_errors import NO_TLS
from manallm_proxy.gateway.advice import unreached
from manallm_proxy.http_client.errors import connect_error
from tests.cases import every
from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, each, upstream

BOX = ProviderConfig("box", "ollama", "http://box:11434")
CLOUD = ProviderConfig("cloud", "openai", "https://cloud.test/v1")
GOOGLE = ProviderConfig("google", "google", None)
BEHIND = evolve(CLOUD, proxy="http://me:CANARY@proxy.test:3128")


@every(
    [
        (
            BOX,
            "refused",
            "nothing answers at http://box:11434 (refused): 'ollama serve' starts it, or correct base_url",
        ),
        (CLOUD, "refused", "nothing answers at https://cloud.test/v1 (refused): start it, or correct base_url"),
        (
            CLOUD,
            "dns",
            "the host name in https://cloud.test/v1 cannot be looked up: correct base_url, or mend this machine's DNS",
        ),
        (
            CLOUD,
            NO_TLS,
            "what answers at https://cloud.test/v1 speaks no TLS: correct base_url, which may have to begin with http://",
        ),
        (
            CLOUD,
            "tls: certificate has expired",
            "the TLS certificate of https://cloud.test/v1 is not trusted (certificate has expired): "
            "renew it, or have this machine trust its authority",
        ),
        (GOOGLE, "dns", "it cannot be reached (dns)"),
        (
            BEHIND,
            "refused",
            "no connection to https://cloud.test/v1 through its forward proxy (refused): correct `proxy`, or base_url",
        ),
        (
            BEHIND,
            "dns",
            "no connection to https://cloud.test/v1 through its forward proxy (dns): correct `proxy`, or base_url",
        ),
    ]
)
def test_each_reason_has_its_own_mend(provider: ProviderConfig, detail: str, wanted: str) -> None:
    """No server has to be started that answers already, and no address corrected that is right."""
    assert unreached(provider, "connect_error", detail) == wanted


def test_the_details_are_those_of_the_transport() -> None:
    """By which `unreached` tells them apart."""
    told = [
        connect_error(error, "p").detail
        for error in (socket.gaierror(), ssl.SSLError(), ssl.SSLCertVerificationError())
    ]
    assert told == ["dns", NO_TLS, "tls: not verified"]


async def lacks(connection: Connection, seen: Seen) -> None:
    """As Ollama answers for a model that is not installed."""
    await connection.reply({"error": f"model '{seen.json['model']}' not found"}, "404 Not Found")


async def test_a_bare_name_that_the_default_provider_lacks(tmp_path: Path) -> None:
    """A client's own default, such as gpt-4o, or an alias without its prefix: it says where it was looked for."""
    key = {"name": "a", "sha256": hashlib.sha256(b"sk-a").hexdigest(), "models": ["box/*"]}
    async with upstream(each(lacks), ["m"]) as server:
        config = settings({"box": {"kind": "ollama", "base_url": server.url}}, default_provider="box")
        where = " (a name without a provider is looked for at box; GET /v1/models lists what is served here)"
        async with proxy(config, tmp_path) as p:

            async def told(model: str, **headers: str) -> str:
                body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
                status, answer, _ = await p.post("/v1/chat/completions", body, headers=headers)
                assert (status, answer["error"]["code"], answer["error"]["source"]) == (
                    404,
                    "model_not_found",
                    "provider",
                )
                return str(answer["error"]["message"])

            assert await told("gpt-4o") == "model 'gpt-4o' not found" + where
            assert await told("test") == "model 'test' not found. Did you mean mana/test?" + where
            assert await told("box/gpt-4o") == "model 'gpt-4o' not found"
            assert await told("mana/test") == "model 'm' not found"
            config["auth"] = {"keys": [key]}
            p.write(config)
            await p.app.reload()
            assert await told("test", Authorization="Bearer sk-a") == "model 'test' not found" + where


async def test_each_reason_is_said_once_and_when_to_come_again(tmp_path: Path) -> None:
    """All that a user of most clients sees is this sentence; it said "p/busy (rate_limited). p/busy: rate_limited"."""

    async def answer(connection: Connection, seen: Seen) -> None:
        busy = seen.json["model"] == "busy"
        line = "429 Too Many Requests" if busy else "500 Internal Server Error"
        await connection.reply({"error": {"message": "no"}}, line, extra="Retry-After: 47\r\n" if busy else "")

    async with upstream(each(answer)) as server, upstream(each(lacks)) as away:
        await away.stop()
        config = settings({"p": openai(server.url), "away": openai(away.url)}, ["p/busy"])
        config["aliases"]["mana/ill"] = {"chain": ["p/ill"]}
        config["aliases"]["mana/both"] = {"chain": ["away/m", "p/busy"]}
        async with proxy(config, tmp_path) as p:

            async def told(model: str) -> str:
                return str((await p.chat(model=model))[1]["error"]["message"])

            no = "no provider could serve"
            assert await told("mana/test") == f"{no} mana/test: p/busy (rate_limited); try again in 47 s"
            assert await told("p/busy") == f"{no} p/busy: p/busy (cooling: rate_limited); try again in 47 s"
            assert await told("mana/ill") == f"{no} mana/ill: p/ill (http_5xx: status 500)"  # an SDK tries again itself
            both = f"{no} mana/both: away/m (connect_error: refused), p/busy (cooling: rate_limited)"
            where = f"away: nothing answers at {away.url}/v1 (refused): start it, or correct base_url."
            assert await told("mana/both") == f"{both}; try again in 47 s. {where}"
