"""Which web pages and apps may call, beside those that the configuration lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from manallm_proxy.gateway.hosts import is_allowed_host
from manallm_proxy.gateway.origins import allowed_origin
from tests.cases import every
from tests.proxy import proxy, settings


@every(
    [
        "http://localhost",
        "https://localhost",
        "http://localhost:5173",
        "https://LOCALHOST:8443",
        "http://127.0.0.1:3000",
        "http://127.8.9.1",
        "http://[::1]",
        "https://[::1]:8080",
        "http://0.0.0.0:8000",
        "http://tauri.localhost",
        "https://app.localhost:1420",
        "app://obsidian.md",
        "app://-",
        "file://",
        "tauri://localhost",
        "vscode-webview://1a2b3c",
        "vscode-file://vscode-app",
    ]
)
def test_this_machine_and_apps_may_always_call(origin: str) -> None:
    """No page on the web can have such an origin: a browser gives a page the origin that it was loaded from."""
    assert allowed_origin(origin, ())
    assert allowed_origin(origin, ("https://chat.example.com",))


@every(
    [
        "",
        "null",
        "https://chat.example.com",
        "http://localhost.example.com",
        "http://notlocalhost",
        "http://127.0.0.1.example.com",
        "http://127.0.0.1@example.com",
        "http://example.com#localhost",
        "http://example.com/localhost",
        "http://localhost/x",
        "http://localhost:80x",
        "http://localhost:",
        "http://localhost:5173 ",
        "http://user@localhost",
        "http://10.0.0.1",
        "http://192.168.1.5:3000",
        "http://[::2]",
        "http://[::1",
        "http://[::1]x",
        "http://1",
        "ftp://localhost",
        "localhost",
        "//localhost",
        "app:x",
        "apple://x",
        "xapp://x",
        "chrome-extension://abcdef",
        "moz-extension://abcdef",
        "http://.localhost",
        "http://localhost\n",
        "app://x y",
        "app://x\r\ny: z",
    ]
)
def test_any_other_page_may_not(origin: str) -> None:
    """Not what looks like this machine, and not ``null``, which every page can make itself with a sandboxed frame."""
    assert not allowed_origin(origin, ())
    assert not allowed_origin(origin, ("https://other.example.com",))


@pytest.mark.parametrize(
    ("origin", "configured", "wanted"),
    [
        ("https://chat.example.com", ("https://chat.example.com",), True),
        ("https://chat.example.com", ("https://a.example", "https://chat.example.com"), True),
        ("https://chat.example.com:8443", ("https://chat.example.com",), False),
        ("http://chat.example.com", ("https://chat.example.com",), False),
        ("https://chat.example.com", ("*",), True),
        ("null", ("*",), True),
        ("null", ("null",), True),
        ("chrome-extension://abcdef", ("chrome-extension://abcdef",), True),
        ("", ("*",), False),
    ],
)
def test_what_the_configuration_lists_may_call(origin: str, configured: tuple[str, ...], wanted: bool) -> None:
    """Exactly as it is written; ``*`` is every origin that there is."""
    assert allowed_origin(origin, configured) is wanted


@pytest.mark.parametrize(
    ("origin", "status"), [("http://localhost:5173", 200), ("app://obsidian.md", 200), ("http://evil", 403)]
)
async def test_a_page_of_this_machine_may_call_without_being_listed(tmp_path: Path, origin: str, status: int) -> None:
    """Its script may read the answer, and its preflight says so."""
    async with proxy(settings({"loop": {"kind": "loopback"}}), tmp_path) as p:
        code, _, headers = await p.post("/v1/chat/completions", {"messages": []}, headers={"Origin": origin})
        assert (code, headers.get("access-control-allow-origin")) == (status, origin if status == 200 else None)
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        async with p.client.options(f"{p.url}/v1/chat/completions", headers=asks) as response:
            assert (response.headers.get("Access-Control-Allow-Origin") == origin) is (status == 200)
            assert response.status == (204 if status == 200 else 403)
            assert ("cors.origins" in await response.text()) is (status != 200)


@every(
    [
        ("localhost:3025", True),
        ("app.localhost", True),
        ("127.9.9.9:1", True),
        ("[::1]:3025", True),
        ("10.0.0.7:3025", True),
        ("gpu", True),
        ("", True),
        ("llm.example.org", True),
        ("LLM.example.org.:80", True),
        ("10.0.0.8", False),
        ("evil.example:3025", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example@localhost", False),
        ("[::1", False),
        ("a:b:c", False),
    ]
)
def test_a_host_is_ours_or_not(host: str, ours: bool) -> None:
    """This machine's names, the address that was asked, what is configured; not what begins or ends alike."""
    assert is_allowed_host(host, "10.0.0.7", ("llm.example.org",)) is ours
    assert is_allowed_host(host, "10.0.0.7", ("*",)) is (ours or host not in ("[::1", "a:b:c"))


async def test_a_page_whose_name_leads_here_reads_nothing(tmp_path: Path) -> None:
    """DNS rebinding, and GETs of other sites: 403 on every route, unless a name or an origin is configured."""
    pages = {"origins": ["https://chat.example"], "hosts": ["llm.example"]}
    async with proxy(settings({"loopback": {"kind": "loopback"}}, cors=pages), tmp_path) as p:

        async def code(path: str, **headers: str) -> tuple[int, str | None]:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            async with p.client.get(p.url + path, headers=sent) as response:
                error = (await response.json()).get("error") if response.status == 403 else None
                return response.status, error and error["code"]

        for path in ("/", "/v1/models", "/health", "/metrics", "/nothing"):
            assert await code(path, Host="evil.example") == (403, "host_not_allowed")
            assert await code(path, Sec_Fetch_Site="cross-site") == (403, "origin_not_allowed")
        assert (await code("/v1/models", Host="llm.example:3025"))[0] == 200
        assert (await code("/v1/models", Sec_Fetch_Site="cross-site", Origin="https://chat.example"))[0] == 200
        assert (await code("/v1/models", Sec_Fetch_Site="same-origin"))[0] == 200
        assert not [line for line in p.log.getvalue().splitlines() if "evil" in line]


async def test_where_a_key_is_wanted_any_name_will_do(tmp_path: Path) -> None:
    """The page does not have the key."""
    keys = {"keys": [{"name": "a", "sha256": "0" * 64}]}
    async with proxy(settings({"loopback": {"kind": "loopback"}}, auth=keys), tmp_path) as p:
        async with p.client.get(f"{p.url}/health", headers={"Host": "llm.example"}) as response:
            assert response.status == 200
