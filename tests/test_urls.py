"""Addresses of providers: what the reader accepts, both HTTP clients can open and ask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from manallm_proxy.config.values import InvalidValue, base_url, proxy_url
from manallm_proxy.http_client.aiohttp_session import SessionConnections
from manallm_proxy.http_client.api import Address
from manallm_proxy.http_client.pool import Pool
from tests.cases import each_with_each, every

HOST = "expected a host's name, an IPv4 address, or an IPv6 address in brackets, and perhaps a port"
PATH = "holds a character that no URL's path may have"


@every(
    [
        ("http://[::1]x/v1", HOST),
        ("http://a\\b/", HOST),
        ("http://a..b/v1", HOST),
        ("http://.a/v1", HOST),
        ("http://-a/v1", HOST),
        ("http://a,b/v1", HOST),
        ("http://%41/v1", HOST),
        ("http://[v1.a]/v1", HOST),
        ("http://[::1/v1", "expected a URL such as http://127.0.0.1:11434"),
        (f"http://{'a' * 64}/v1", HOST),
        (f"http://{'a.' * 127}/v1", HOST),
        ("http://h:/v1", HOST),
        ("http://h:0/v1", "expected a port from 1 to 65535"),
        ("http://h:65536/v1", "expected a port from 1 to 65535"),
        ("http://h/a\\b", PATH),
        ("http://h/{deployment}/v1", PATH),
        ("http://h/%zz/v1", PATH),
        ("http://h/v1%", PATH),
    ]
)
def test_a_url_that_no_client_could_use_is_a_mistake(url: str, wanted: str) -> None:
    """Urllib splits more than a client can connect to; the same holds for a forward proxy."""
    for read in (base_url, proxy_url):
        with pytest.raises(InvalidValue) as caught:
            read(url)
        assert str(caught.value) == wanted


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:11434",
        "https://api.groq.com/openai/v1",
        "http://[::1]:8000/v1",
        "http://[fe80::1%eth0]/v1",
        "http://vllm_1:8000/v1",
        "http://box.",
        "https://h/a%20b/v1",
        "https://gateway.example/v1/acct/openai/compat;x=1",
    ],
)
def test_addresses_that_people_use(url: str) -> None:
    """Names with an underscore (containers), a zone, a final dot, an escaped blank."""
    assert base_url(url) == url


ENDPOINTS = [
    *("/chat/completions", "/completions", "/embeddings", "/models", "/responses", "/messages", "/rerank"),
    *("/moderations", "/audio/speech", "/images/generations", "/api/chat", "/api/generate", "/api/embed", "/api/tags"),
]


@each_with_each(ENDPOINTS, ["", "/"])
def test_an_endpoint_is_no_base_url(end: str, slash: str) -> None:
    """People paste what their curl line says; every request would be a 404."""
    with pytest.raises(InvalidValue) as caught:
        base_url(f"https://host/v1{end}{slash}")
    assert str(caught.value) == f"ends in an endpoint: leave out '{end}', which the proxy adds itself"
    assert base_url(f"https://host{end}/v1") == f"https://host{end}/v1"
    assert proxy_url(f"https://host{end}") == f"https://host{end}"


@pytest.mark.parametrize("end", [":generateContent", ":streamGenerateContent", ":batchEmbedContents"])
def test_a_method_of_geminis_is_none_either(end: str) -> None:
    """What its documentation's curl line says."""
    with pytest.raises(InvalidValue, match=f"leave out '{end}'"):
        base_url(f"https://host/v1beta/models/m{end}")


_HOST_TEXT = st.text("ab0.-_[]:%@\\,1fv", max_size=12) | st.sampled_from(
    ["[::1]", "[::1]x", "[fe80::1%eth0]", "[::ffff:1.2.3.4]", "127.0.0.1", "a..b", "xn--bcher-kva.example", "H", "h."]
)
_PATH_TEXT = st.text("abv1/.%2e;:@\\~!{}", max_size=16) | st.sampled_from(["", "/v1", "/../v1", "/%2e%2e/v1", "//a"])
URLS = st.builds(
    lambda scheme, host, port, path: f"{scheme}://{host}{port}{path}",
    st.sampled_from(["http", "https", "HTTP"]),
    _HOST_TEXT,
    st.sampled_from(["", ":80", ":0", ":", ":65536", ":8_0", ":0080"]),
    _PATH_TEXT,
)


@given(url=URLS)
async def test_what_the_reader_accepts_both_clients_can_ask(url: str) -> None:
    """Pool and session open for it, and put the same target, host and port into a request."""
    try:
        accepted = base_url(url)
    except InvalidValue:
        return
    address = Address("p", accepted)
    pool, session = Pool(address), SessionConnections(address)
    try:
        head = (pool._head("GET", "models", None, None, None) + pool._lines()).decode()
        asked = URL(f"{accepted}/models")
        assert asked.raw_host
        assert asked.port
        assert head.startswith(f"GET {asked.raw_path_qs} HTTP/1.1\r\n")
        assert f"\r\nHost: {asked.host_port_subcomponent}\r\n" in head
        assert (pool._url.raw_host, pool._url.port) == (asked.raw_host, asked.port)
    finally:
        await pool.close()
        await session.close()
