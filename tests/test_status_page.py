"""The status page: who gets it, what it may load, and what a real browser makes of it."""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import os
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from manallm_proxy.gateway.status_page import FOLDER, NAMES
from tests.browser import chromium
from tests.command import ROOT
from tests.needs import require
from tests.ollama_box import box
from tests.proxy import openai, process, proxy, settings
from tests.sdks import INSTALLED
from tests.upstreams import DONE, Connection, Seen, answers, chunk, each, status, upstream

pytestmark = pytest.mark.together
LOOP = {"loop": {"kind": "loopback"}}
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
SCRIPTS = sorted(FOLDER.glob("*.js"))
LATE = """(() => {
    const real = window.fetch;
    let left = 2;
    window.fetch = (url, options) => String(url).includes("/v1/requests/") && left-- > 0
        ? Promise.resolve(new Response('{"error": {"message": "none"}}', {status: 404})) : real(url, options);
})()"""
"""A request of the page's is among the ended ones only when it asks for the third time."""
PICTURES = os.environ.get("STATUS_PAGE_PICTURES")
"""A folder for what the browser saw."""


def test_it_is_small_and_whole() -> None:
    """Under 80 KiB; what is there is served, and what is served is there."""
    assert {path.name for path in FOLDER.iterdir()} == set(NAMES)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 80 * 1024


def test_its_picture_is_light() -> None:
    """README shows it (`make picture`): whoever reads that on a phone loads it too."""
    picture = ROOT / "docs/status-page.webp"
    assert f"]({picture.relative_to(ROOT)})" in (ROOT / "README.md").read_text()
    assert picture.read_bytes()[8:12] == b"WEBP" and picture.stat().st_size < 100 * 1024


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_make_no_markup_of_text(path: Path) -> None:
    """Names come from clients and providers: there is no way by which one could become an element."""
    text = path.read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert word not in text
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []


def test_nothing_is_loaded_from_elsewhere() -> None:
    """Nor does any script or style stand in the page."""
    page = (FOLDER / "index.html").read_text()
    assert all(each.startswith(("/page/", "#")) for each in re.findall(r'(?:src|<link[^>]* href)="([^"]*)"', page))
    assert re.findall(r'<a [^>]*href="([^"]*)"', page) == ["#main", "/v1/health"]
    assert re.findall(r"<script[^>]*>[^<]|<style|\son\w+=|\sstyle=", page) == []
    assert '<html lang="en">' in page and 'name="viewport"' in page
    assert "url(" not in (FOLDER / "page.css").read_text()


async def test_a_browser_gets_the_page_and_others_what_they_got(tmp_path: Path) -> None:
    """By what they accept; under a strict policy."""
    async with proxy(settings(LOOP), tmp_path) as p:
        for accept in ("*/*", "application/json", ""):
            async with p.client.get(p.url, headers={"Accept": accept}) as response:
                assert (await response.json())["name"] == "manallm-proxy"
                assert response.headers["X-Content-Type-Options"] == "nosniff"
        for path in ("/", *(f"/page/{name}" for name in NAMES if name != "index.html")):
            async with p.client.get(p.url + path, headers={"Accept": BROWSER}) as response:
                assert response.status == 200, path
                policy = response.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
                assert not any(word in policy for word in ("unsafe", "*", "http:", "https:", "data:"))
                assert response.headers["X-Content-Type-Options"] == "nosniff"
        for name in ("index.html", "nosuch.js", "../gateway.py", "..%2fgateway.py"):
            async with p.client.get(f"{p.url}/page/{name}") as response:
                assert response.status == 404


def first_look(page: str) -> Any:
    """What the page came with; None if it came with nothing."""
    found = re.search(r' data-first="([^"]*)"', page)
    return json.loads(html.unescape(found[1])) if found else None


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_first_look_comes_with_the_page(workers: int, tmp_path: Path) -> None:
    """Names that are markup cannot end its attribute. With keys it has to be asked for with one."""
    config = settings(LOOP)
    hostile = 'mana/"><script>'
    config["aliases"][hostile] = {"chain": ["loop/m"]}
    async with process(config, tmp_path, None, "--workers", str(workers)) as p, aiohttp.ClientSession() as client:

        async def page(**headers: str) -> tuple[str, str]:
            async with client.get(p.url, headers={"Accept": BROWSER, **headers}) as response:
                assert response.status == 200
                return await response.text(), response.headers["Cache-Control"]

        text, cached = await page()
        told = first_look(text)
        assert cached == "no-store" and hostile not in text
        assert [each["name"] for each in told["aliases"]] == [each["model"] for each in told["models"]]
        assert hostile in [each["model"] for each in told["models"]]
        assert told["models"][0]["serves"] == "loop/m" and "loop" in told["health"]["providers"]
        assert ("workers" in told["health"]) == (workers > 1)
        text, cached = await page(Origin="https://elsewhere.example")
        assert first_look(text) is None and cached == "no-cache"


async def test_it_is_not_shown_to_others_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys, from another machine: the files neither. JSON is what it was."""
    monkeypatch.setattr("manallm_proxy.gateway.operator_access._is_on_this_machine", lambda request: False)
    async with proxy(settings(LOOP), tmp_path) as p:
        for path in ("/", "/page/main.js"):
            async with p.client.get(p.url + path, headers={"Accept": BROWSER}) as response:
                assert response.status == 403
        assert (await p.get("/"))[0] == 200


async def thinks(connection: Connection, seen: Seen) -> None:
    """As Mistral's models: ``content`` may be a list of blocks."""
    if not seen.json.get("stream"):
        await answers(connection, seen)
        return
    await connection.head()
    for said in ([{"type": "thinking", "thinking": []}], [{"type": "text", "text": "Hel"}], "lo"):
        await connection.chunk(chunk(said))
    await connection.chunk(chunk(finish="stop") + DONE)
    await connection.end()


@pytest.mark.built_in
async def test_in_a_browser(tmp_path: Path) -> None:
    """Live: names that are markup stay text, a request appears and opens, a provider dies, a chat is tried."""
    async with upstream(each(status("503 No", {"error": {"message": "no"}}))) as bad, upstream(each(thinks)) as good:
        providers = {"bad": openai(bad.url), "good": openai(good.url), **LOOP}
        config = settings(providers, ["bad/m", "good/m", "loop/m"])
        hostile = "mana/<script>document.title='HACKED'"
        config["aliases"][hostile] = {"chain": ["loop/<img src=x onerror=alert(1)>".replace(" ", "/")]}
        async with proxy(config, tmp_path) as p, chromium() as page:
            await page.looks(1100)
            await page.open(p.url)
            await page.until("document.querySelectorAll('#aliases > li').length == 2")
            assert await page.value("document.querySelector('.target.serves b').textContent") == "bad/m"
            await p.chat(model=hostile)
            await p.chat(model="good/<img/src=x/onerror=alert(1)>")
            await page.until("document.querySelectorAll('#requests > li').length == 2")
            for _ in range(2):
                await p.chat(model="mana/test")
            await page.until("document.querySelector('.target.serves b').textContent == 'good/m'", 2)
            await page.value("document.querySelector('#requests summary').click()")
            await page.until("document.querySelectorAll('#requests .line-of').length == 2")
            await page.until("document.querySelector('#requests .open').innerText.includes('served')")
            edges = (
                "[...document.querySelectorAll('#requests .track')].map((each) => each.getBoundingClientRect().left)"
            )
            assert len(set(await page.value(edges))) == 1  # all on one axis, whatever became of them
            assert await page.value("document.title") == "manallm-proxy"
            assert await page.value("document.querySelectorAll('img, main script, iframe').length") == 0
            assert "<script>" in await page.text()
            await page.value("document.getElementById('send').click()")
            await page.until("document.getElementById('walk').innerText.includes('good/m ·')")
            assert "Hello" in await page.value("document.getElementById('answer').textContent")
            for width, dark in ((1100, False), (1100, True), (360, False), (360, True)):
                await page.looks(width, dark=dark)
                assert await page.value("document.documentElement.scrollWidth") <= width
                if PICTURES:
                    await page.picture(Path(PICTURES) / f"{width}-{'dark' if dark else 'light'}.png")
            assert page.problems == []
            assert {each.startswith(p.url) for each in page.asked} == {True}


@pytest.mark.built_in
async def test_a_request_that_failed_opens_too(tmp_path: Path) -> None:
    """Those are the ones that are looked up: to its attempts and its error, in the list and after a chat was tried."""
    async with upstream(each(status("503 No", {"error": {"message": "no"}}))) as bad, chromium() as page:
        async with proxy(settings({"bad": openai(bad.url)}, ["bad/m"]), tmp_path) as p:
            assert (await p.chat())[0] == 503
            await page.open(p.url)
            await page.until("document.querySelectorAll('#requests > li').length == 1")
            await page.value("document.querySelector('#requests summary').click()")
            await page.until("document.querySelectorAll('#requests .line-of').length == 1")
            opened = await page.value("document.querySelector('#requests .open').innerText")
            assert "http 5xx" in opened and "no_healthy_provider" in opened
            await page.value("document.getElementById('send').click()")
            await page.until("document.getElementById('walk').innerText.includes('http 5xx')")


@pytest.mark.built_in
async def test_it_is_useful_before_anything_was_asked_for(tmp_path: Path) -> None:
    """What serves is drawn from what came with the page, whenever the rest comes."""
    async with proxy(settings(LOOP), tmp_path) as p, chromium() as page:
        await page.open("about:blank")
        await page.send("Network.setBlockedURLs", urls=["*/v1/*"])
        await page.send("Page.navigate", url=p.url)
        await page.until("document.querySelector('.target.serves b')?.textContent == 'loop/m'")
        assert await page.value("document.querySelector('#providers h3').textContent") == "loop"
        await page.until("document.body.innerText.includes('Connection lost')")


@pytest.mark.built_in
async def test_without_scripts_it_leads_to_the_same_in_json(tmp_path: Path) -> None:
    """And does not claim to be connecting."""
    async with proxy(settings(LOOP), tmp_path) as p, chromium() as page:
        await page.send("Emulation.setScriptExecutionDisabled", value=True)
        await page.open(p.url)
        await page.until("document.querySelector('noscript a') !== null")
        assert await page.value("document.querySelector('noscript a').getAttribute('href')") == "/v1/health"
        assert await page.value("document.getElementById('state').innerText.trim()") == ""


@pytest.mark.built_in
async def test_axe_finds_nothing_to_mend(tmp_path: Path) -> None:
    """Contrast, names, roles, order of headings: with a target that is down, a refusal, and a request that is open."""
    axe = require(INSTALLED / "node_modules/axe-core/axe.min.js", "`make test` fetches it by npm").read_text()
    async with upstream(each(status("503 No", {"error": {"message": "no"}}))) as bad, upstream(each(answers)) as good:
        providers = {"bad": openai(bad.url), "good": openai(good.url), "none": openai("http://x", api_key="${NONE}")}
        async with proxy(settings(providers, ["bad/m", "good/m", "none/m"]), tmp_path) as p, chromium() as page:
            await p.chat(model="mana/none")
            for _ in range(2):
                await p.chat(model="mana/test")
            await page.open(p.url)
            await page.until("document.querySelectorAll('#requests > li').length == 3")
            await page.value("document.querySelector('#requests summary').click()")
            await page.until("document.querySelectorAll('#requests .line-of').length == 2")
            await page.value(LATE)
            await page.value("document.getElementById('send').click()")
            await page.until("document.getElementById('walk').innerText.includes('good/m ·')")
            await page.value(f"{axe}; 0")
            for width, dark in ((1100, False), (1100, True), (360, False), (360, True)):
                await page.looks(width, dark=dark)
                found = await page.value(
                    "axe.run().then((found) => found.violations.map((each) => "
                    "`${each.id}: ${each.nodes.map((node) => node.target + ' ' + node.failureSummary).join('; ')}`))"
                )
                assert found == [], (width, dark)


@pytest.mark.built_in
async def test_a_box_its_queue_and_a_rest(tmp_path: Path) -> None:
    """A model that is loaded, who waits for it, and when a target that rests may be asked again."""
    async with box("small") as gpu, upstream(each(status("503 No"))) as bad, chromium() as page:
        gpu.put("small")
        providers = {"bad": openai(bad.url), "gpu": gpu.provider(parallel=1)}
        async with proxy(settings(providers, ["bad/m", "gpu/small"]), tmp_path) as p:
            for _ in range(2):
                assert (await p.chat())[0] == 200
            await page.open(p.url)
            await page.until("document.getElementById('aliases')?.innerText.includes('unhealthy, again in ')")
            await page.until("document.getElementById('providers').innerText.includes('small loaded')")
            gpu.answers.clear()
            asked = [asyncio.ensure_future(p.chat()) for _ in range(2)]
            look = "document.dispatchEvent(new Event('visibilitychange'))"  # as on coming back to the tab
            await page.until(f"{look}; document.getElementById('providers').innerText.includes('1 wait')")
            gpu.answers.set()
            assert [answer[0] for answer in await asyncio.gather(*asked)] == [200, 200]


@pytest.mark.built_in
async def test_what_staying_local_saved(tmp_path: Path) -> None:
    """A chart of its own once there is something to show, and a line of the request; cents as what they are."""
    async with upstream(each(answers)) as gpu, chromium() as page:
        home = {"gpu": openai(gpu.url, local=True), "cloud": openai("http://127.0.0.1:9")}
        chain = ["gpu/m", {"target": "cloud/m", "price": {"input": 1000, "output": 1000}}]
        async with proxy(settings(home, chain), tmp_path) as p:
            await page.open(p.url)
            await page.until("document.querySelectorAll('#charts .chart').length == 3")
            await p.chat()
            await page.until("document.getElementById('charts').innerText.includes('$0.005 by staying local')")
            assert (
                await page.value("[...document.querySelectorAll('#charts .bar')].pop().getAttribute('height')") == "64"
            )
            await page.value("document.querySelector('#requests summary').click()")
            await page.until("document.querySelector('#requests .open').innerText.includes('$0.005')")


@pytest.mark.built_in
async def test_a_lost_connection_mends_itself(tmp_path: Path) -> None:
    """It is said clearly, and over when the proxy is back."""
    config = settings(LOOP)
    async with chromium() as page:
        async with proxy(config, tmp_path) as p:
            config["listen"] = {"port": p.port}
            await page.open(p.url)
            await page.until("document.querySelectorAll('#aliases > li').length == 1")
            assert "Connection lost" not in await page.text()
        await page.until("document.body.innerText.includes('Connection lost')", 10)
        async with proxy(config, tmp_path) as p:
            await page.until("!document.body.innerText.includes('Connection lost')", 15)
            await p.chat()
            await page.until("document.querySelectorAll('#requests > li').length == 1")


@pytest.mark.built_in
async def test_the_key_stays_in_the_tab(tmp_path: Path) -> None:
    """It is asked for, by keyboard alone; a wrong one is refused in words."""
    keys = [{"name": "root", "sha256": hashlib.sha256(b"root").hexdigest(), "admin": True}]
    async with proxy(settings(LOOP, auth={"keys": keys}), tmp_path) as p, chromium() as page:
        async with p.client.get(p.url, headers={"Accept": BROWSER}) as response:
            assert first_look(await response.text()) is None
        await page.open(p.url)
        await page.until("document.activeElement?.id == 'key'")
        await page.send("Input.insertText", text="wrong")
        await page.key("Enter", 13)
        await page.until("document.getElementById('why')?.textContent.includes('not known')")
        await page.until("document.activeElement?.id == 'key'")
        await page.send("Input.insertText", text="root")
        await page.key("Enter", 13)
        await page.until("document.querySelectorAll('#aliases > li').length == 1")
        assert await page.value("localStorage.length + document.cookie.length") == 0
        assert "root" not in await page.value("location.href")
