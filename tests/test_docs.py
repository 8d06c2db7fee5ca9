"""The README and the pages under docs/ say what is so: each configuration passes ``check``, each command prints what it
says, each file that they name exists.

A page is taken as it stands, but for addresses, which `Stage.names` exchanges for ours. Of its YAML blocks the first is
a whole configuration, and each later one is laid over the first. Its ``console`` blocks are played from the top: a line
with ``manallm-proxy serve`` begins to serve the latest configuration; any other command is run by a shell, and what it
prints has to fit the lines below it, where ``...`` stands for any text.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
import yaml
from attrs import define, field, frozen

from manallm_proxy.cli.check import check
from tests.command import ROOT, server
from tests.nginx import EXAMPLE, nginx
from tests.ollama_box import box
from tests.ports import free_port, held
from tests.proxy import Process, process, written
from tests.supervised import health
from tests.upstreams import answers, each, upstream

PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROSE: Final = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
WITH_FACTS: Final = ("providers.md", "clients.md")
"""Pages whose every point says where the code deals with it."""
SERVE: Final = "manallm-proxy serve --config proxy.yaml"
SITE: Final = "llm.example.org"
KEYS: Final = dict.fromkeys(("OPENROUTER_API_KEY", "TOGETHER_API_KEY", "GOOGLE_API_KEY"), "") | {"GROQ_API_KEY": "k"}
_FENCE: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE: Final = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|md|yaml|yml|json|example|service|socket|c|sh|conf))`")


@frozen
class Block:
    """``before``: the page's text above it."""

    kind: str
    text: str
    line: int
    before: str = field(repr=False)


def blocks(page: Path, *kinds: str) -> list[Block]:
    text = page.read_text()
    found = [Block(m[1], m[2], text.count("\n", 0, m.start()) + 2, text[: m.start()]) for m in _FENCE.finditer(text)]
    return [block for block in found if not kinds or block.kind in kinds]


def laid_over(base: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """`base` with what `part` gives; a list is taken whole."""
    merged = dict(base)
    for key, value in part.items():
        known = merged.get(key)
        merged[key] = laid_over(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


def configuration(first: Block, latest: Block) -> dict[str, Any]:
    """`latest` over `first`, whose aliases may stand in a block of their own.

    A digest of ours stands for each that is not shown (three dots).
    """
    digests = (f'"{number:064x}"' for number in range(99))
    base, part = (yaml.safe_load(re.sub(r'"\.\.\."', lambda _: next(digests), each.text)) for each in (first, latest))
    return laid_over({"aliases": {}, **base}, part)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_configuration_passes_check(page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the page, each over the first."""
    found = blocks(page, "yaml")
    for block in found:
        path = tmp_path / f"line-{block.line}.yaml"
        path.write_text(written(configuration(found[0], block)))
        assert check(str(path), False, KEYS) == 0
        assert capsys.readouterr().out.count("\n") == 1, f"{page.name}, line {block.line}: a note beside 'fine'"


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    """Links from the page's folder, with their headings; paths in backticks from the root or the package."""
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, link
    for name in _FILE.findall(text):
        if name.startswith("/") or "yours" in name:
            continue
        assert (ROOT / name).exists() or (ROOT / "manallm_proxy" / name).exists(), name


def test_every_name_of_the_code_exists() -> None:
    """`module.name` in CONTRIBUTING stands for something in that module."""
    modules: dict[str, str] = {}
    for path in (ROOT / "manallm_proxy").rglob("*.py"):
        modules[path.stem] = modules.get(path.stem, "") + path.read_text()
    named = re.findall(r"`(\w+)\.(\w+)`", (ROOT / "CONTRIBUTING.md").read_text())
    found = [(module, name) for module, name in named if module in modules and name != "py"]
    assert len(found) > 3
    assert [each for each in found if not re.search(rf"\b{each[1]}\b", modules[each[0]])] == []


@pytest.mark.parametrize("name", WITH_FACTS)
def test_every_fact_has_its_place_in_the_code(name: str) -> None:
    """Each point of a list names a file, which exists by the test above."""
    points = re.findall(r"^\* .+?(?=^\* |^$)", (ROOT / "docs" / name).read_text(), re.MULTILINE | re.DOTALL)
    assert len(points) > 20
    assert [point for point in points if not _FILE.search(point)] == []


def test_the_way_of_a_request_is_short() -> None:
    """At most twelve hops, each beginning with its file."""
    section = (
        (ROOT / "CONTRIBUTING.md").read_text().partition("### The path of a streamed request")[2].partition("###")[0]
    )
    hops = re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.MULTILINE)
    assert 5 < len(hops) <= 12
    assert len(hops) == len(re.findall(r"^\d+\. ", section, re.MULTILINE))
    assert [hop for hop in hops if not (ROOT / "manallm_proxy" / hop).exists()] == []


def test_commands_in_pages_are_played() -> None:
    """A page has no shell block that `test_commands_print_what_the_page_says` passes over (yml: another program's)."""
    kinds = {(page.name, block.kind) for page in PAGES[1:] for block in blocks(page)}
    assert [
        kind for kind in kinds if kind[1] not in ("yaml", "console", "nginx", "ini", "toml", "python", "yml", "text")
    ] == []


# --- commands -------------------------------------------------------------------------------------


@define(eq=False)
class Stage:
    """One proxy for all pages, which takes each one's configuration by a reload; providers that are scripts.

    ``names``: what a page writes, and what stands for it here.
    """

    folder: Path
    names: dict[str, str]
    port: int
    running: Process | None = None
    _reloads: int = 0

    def here(self, text: str) -> str:
        for name, ours in self.names.items():
            text = text.replace(name, ours)
        return text.replace("localhost:3025", f"localhost:{self.port}")

    def on_page(self, text: str) -> str:
        for name, ours in self.names.items():
            text = text.replace(ours, name)
        return text.replace("\r", "").rstrip("\n")

    def adapted(self, config: dict[str, Any]) -> dict[str, Any]:
        adapted: dict[str, Any] = yaml.safe_load(self.here(written(config)))
        return laid_over(adapted, {"listen": {"port": self.port}})

    async def take(self, config: dict[str, Any]) -> None:
        """Serves `config` from now on, with what the first probes bring."""
        assert self.running is not None
        (self.folder / "proxy.yaml").write_text(written(config))
        os.kill(self.running.pid, signal.SIGHUP)
        self._reloads += 1
        await self.running.logs('"reloaded"', self._reloads)
        if not config.get("auth", {}).get("keys"):  # nobody else may ask
            await _probed(self.running.url, config)

    async def run(self, command: str) -> str:
        environ = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        environ["MANALLM_CONFIG"] = str(self.folder / "proxy.yaml")
        child = await asyncio.create_subprocess_exec(
            *("sh", "-c", command),
            stdout=asyncio.subprocess.PIPE,
            env=environ,
            cwd=self.folder,
            pass_fds=[server().fileno()],
        )
        output, _ = await asyncio.wait_for(child.communicate(), 40)
        assert child.returncode == 0, command
        return output.decode()


async def _probed(url: str, config: dict[str, Any]) -> None:
    """Returns once every provider was asked what it has, and each local one what it has loaded."""
    local = {name for name, each in config["providers"].items() if each.get("local")}
    async with asyncio.timeout(5):
        while True:
            rows = {n: row for n, row in (await health(url))["providers"].items() if row["status"] != "unconfigured"}
            asked = all(row["last_check"] for row in rows.values() if row.get("kind") != "loopback")
            watched = [target for name in local for target in rows[name].get("targets", {}).values()]
            if asked and all(target.get("loaded") is not None for target in watched):
                return
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("docs")
    command = folder / "manallm-proxy"
    ours = f"-S -E {ROOT}/tests/forked.py {server().fileno()}" if hasattr(os, "pidfd_open") else "-m manallm_proxy"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {ours} "$@"\n')
    command.chmod(0o755)
    models = ["qwen2.5:7b", "qwen2.5:32b"]
    switched_off = held(free_port())  # a server of another run would answer there
    async with box(*models) as gpu, upstream(each(answers), ["llama-3.1-8b-instant"]) as cloud:
        gpu.put("qwen2.5:7b", 8192)
        gpu.slow.add("qwen2.5:32b")
        off = f"http://127.0.0.1:{switched_off.getsockname()[1]}"
        names = {
            "http://192.168.1.20:11434": gpu.url,
            "http://192.168.1.30:11434": off,
            "https://api.groq.com/openai/v1": f"{cloud.url}/v1",
            "/run/manallm/proxy.sock": str(folder / "proxy.sock"),
        }
        made = Stage(folder, names, free_port())
        config = {"listen": {"port": made.port}, "providers": {"none": {"kind": "loopback"}}, "aliases": {}}
        environ = {**KEYS, "OLLAMA_URL": off}
        async with process(config, folder, environ) as made.running:
            yield made
    switched_off.close()


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """Each with the lines that it prints. A line that ends in a backslash goes on in the next one."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found and found[-1][0].endswith("\\") and not found[-1][1]:
            found[-1] = (f"{found[-1][0]}\n{line}", [])
        else:
            found[-1][1].append(line)
    return found


def pattern(lines: list[str]) -> re.Pattern[str]:
    """What fits the lines of a page."""
    return re.compile("\n".join(r"[^\n]*".join(map(re.escape, line.split("..."))) for line in lines))


@asynccontextmanager
async def in_front(stage: Stage, block: Block, upstream: Block | None, swapped: bool) -> AsyncIterator[None]:
    """nginx with the example, edited as the page says so far, under `SITE`; of two instances one is down."""
    site = EXAMPLE.read_text()
    if upstream is not None:
        site, done = re.subn(r"upstream manallm \{.*?\n\}\n", lambda _: upstream.text, site, count=1, flags=re.DOTALL)
        assert done == 1
    for old, new in re.findall(r"`([\w ]+)` becomes `([\w ]+)`", " ".join(block.before.split())):
        assert f"{old};" in site
        site = site.replace(f"{old};", f"{new};")
    instances = [f"127.0.0.1:{stage.port}", f"127.0.0.1:{free_port()}"]
    places = zip(("192.168.1.10:3025", "192.168.1.11:3025"), reversed(instances) if swapped else instances, strict=True)
    for name, ours in places:
        site = site.replace(name, ours)
    async with nginx(stage, stage.folder, stage.here(site)) as url:
        stage.names["curl "] = f"curl --connect-to {SITE}:80:{url.removeprefix('http://')} "
        try:
            yield
        finally:
            del stage.names["curl "]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")], ids=lambda page: page.name)
async def test_commands_print_what_the_page_says(page: Path, stage: Stage) -> None:
    """From the top of the page to its end, over a running proxy; what nginx is in front of, through a real one."""
    all_blocks = blocks(page, "yaml", "console", "nginx")
    first = next(block for block in all_blocks if block.kind == "yaml")
    latest, upstream_block, on = first, None, stage
    async with AsyncExitStack() as own:
        for block in all_blocks:
            if block.kind == "yaml":
                latest = block
            elif block.kind == "nginx":
                upstream_block = block
            else:
                if (serve := commands(block)[0][0]).startswith(SERVE):
                    on = await _serving(serve.removeprefix(SERVE), stage, configuration(first, latest), own)
                several = upstream_block is not None and upstream_block.text.count("server ") > 1
                for swapped in (False, True)[: 1 + several]:
                    place = in_front(on, block, upstream_block, swapped)
                    async with place if SITE in block.text else contextlib.nullcontext():
                        await _play(page, block, on)


async def _serving(arguments: str, stage: Stage, config: dict[str, Any], own: AsyncExitStack) -> Stage:
    """`stage` with `config`; a process of the page's own where a reload would not do."""
    if not arguments and "unix" not in config.get("listen", {}):
        await stage.take(stage.adapted(config))
        return stage
    other = Stage(stage.folder, {**stage.names}, free_port())
    await own.enter_async_context(process(other.adapted(config), stage.folder, KEYS, *arguments.split()))
    return other


async def _play(page: Path, block: Block, stage: Stage) -> None:
    for command, lines in commands(block):
        if command.startswith(SERVE):
            continue
        output = stage.on_page(await stage.run(stage.here(command)))
        where = f"{page.name}, line {block.line}: {command}\n{output}"
        assert not lines or pattern(lines).fullmatch(output), where


@pytest.mark.asyncio(loop_scope="module")
async def test_the_readmes_commands_work(stage: Stage) -> None:
    """Those that ask a running proxy, of the quickstart; a feed has no end, so it gets a second."""
    shown = [line for block in blocks(PAGES[0], "sh") for line, _ in commands(_as_console(block))]
    asked = [line for line in shown if line.startswith(("curl ", "manallm-proxy explain", "manallm-proxy requests"))]
    assert len(asked) > 2
    await stage.take(stage.adapted(yaml.safe_load((ROOT / "config" / "quickstart.yaml").read_text())))
    for line in asked:
        command = re.sub(r"\s+# .*", "", line).replace("127.0.0.1:3025", f"127.0.0.1:{stage.port}")
        if "curl -N" in line:
            command = command.replace("curl", "curl -f --max-time 0.2", 1) + " || [ $? = 28 ]"
        elif "/ID" in line:
            continue
        await stage.run(command.replace("curl ", "curl -fsS ", 1))


def _as_console(block: Block) -> Block:
    """Each command of an ``sh`` block that follows a prompt."""
    lines = re.sub(r"(?m)^(?=\S)", "$ ", block.text)
    return Block("console", lines, block.line, block.before)
