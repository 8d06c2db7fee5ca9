"""Who is measured: ourselves, and the proxies that registries offer, each in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import field, frozen

from bench.machine import BenchError

HERE = Path(__file__).parent
INSTALLED = HERE / ".peers"


@frozen
class Site:
    """Where one runs."""

    folder: Path
    port: int
    upstream: int

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.upstream}/v1"


@frozen
class Peer:
    name: str
    title: str
    prepare: Callable[[], str]
    """Installs it where it is missing, and gives its version."""
    command: Callable[[Site], list[str]]
    """Writes what it reads, and says how it is started."""
    environ: Mapping[str, str] = field(factory=dict)
    headers: Mapping[str, str] = field(factory=dict)
    model: str = "bench"
    start_timeout: float = 20
    """Seconds until it must answer."""
    everywhere: bool = False
    """It listens on all addresses: only for a network of our own."""
    asked: bool = False
    """Measured only where ``ONLY`` names it."""


def run(*command: str | Path, limit: float = 1200) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{Path(command[0]).name}: {error}") from error
    if done.returncode:
        raise BenchError(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout + done.stderr


# -- ourselves: as under systemd, with everything on -----------------------------------------------------------------

BEFORE = os.environ.get("BEFORE", "")
"""A commit; what was built from it is measured beside ourselves."""


def before_version() -> str:
    """Unpacks that commit, and gives its name."""
    folder = INSTALLED / "before"
    commit = run("git", "-C", HERE, "rev-parse", "--short", f"{BEFORE or 'none was asked for'}^{{commit}}").strip()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run("git", "-C", HERE.parent, "archive", "--output", folder / "all.tar", commit)
    run("tar", "-xf", folder / "all.tar", "-C", folder)
    return commit


def before(site: Site) -> list[str]:
    """As `ours`, without the providers that the build before does not know: it is compared by those that both have."""
    command = ours(site)
    path = Path(command[-1])
    config = json.loads(path.read_text())
    environ = {**os.environ, "PYTHONPATH": str(INSTALLED / "before")}
    check = [*command[:-3], "check", *command[-2:]]
    said = subprocess.run(check, env=environ, cwd=site.folder, capture_output=True, text=True, check=False)
    for name in re.findall(r"^providers\.(\w+)", said.stdout + said.stderr, re.MULTILINE):
        config["providers"].pop(name, None)
    path.write_text(json.dumps(config))
    return command


def our_version() -> str:
    told = run(sys.executable, "-m", "manallm_proxy", "--version").split()[-1]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    libraries = run(
        sys.executable,
        "-c",
        "import aiohttp, uvloop; print('aiohttp', aiohttp.__version__ + ', uvloop', uvloop.__version__)",
    )
    return f"{told} ({commit.stdout.strip() or 'no git'}; Python {sys.version.split()[0]}, {libraries.strip()})"


def ours(site: Site) -> list[str]:
    """An alias over two providers, so that there is a chain to walk, and a provider of each other dialect; all else as
    shipped, nothing turned off."""
    chat = {"kind": "openai", "base_url": site.base, "api_key": "unused"}
    host = site.base.removesuffix("/v1")
    config = {
        "listen": {"host": "127.0.0.1", "port": site.port},
        "providers": {
            "near": chat,
            "far": chat,
            "native": {**chat, "speaks": ["chat", "responses", "messages"]},
            "ollama": {"kind": "ollama", "base_url": host},
            "gemini": {"kind": "google", "base_url": host, "api_key": "unused"},
        },
        "aliases": {"mana/bench": {"chain": ["near/bench", "far/bench"]}},
        "default": "mana/bench",
    }
    path = site.folder / "proxy.yaml"
    path.write_text(json.dumps(config))
    return [sys.executable, "-m", "manallm_proxy", "serve", "--config", str(path)]


# -- nginx: the floor ------------------------------------------------------------------------------------------------


def nginx_program() -> str:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") or ""


def nginx_version() -> str:
    if not nginx_program() and shutil.which("apt-get") and os.geteuid() == 0:
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "nginx-light")
    if not nginx_program():
        raise BenchError("no nginx here (Debian: apt-get install nginx-light)")
    return run(nginx_program(), "-v").strip().rpartition("/")[2]


def nginx(site: Site) -> list[str]:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {site.folder}/{kind};" for kind in kinds)
    path = site.folder / "nginx.conf"
    path.write_text(f"""
daemon off; worker_processes 1; pid {site.folder}/pid; {"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 8192; }}
http {{
    {temporary}
    access_log {site.folder}/access.log;
    keepalive_requests 100000000;
    client_max_body_size 32m;
    client_body_buffer_size 4m;  # no temporary files
    upstream bench {{ server 127.0.0.1:{site.upstream}; keepalive 1024; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{site.port} backlog=4096;
        location / {{
            proxy_pass http://bench;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
""")
    return [nginx_program(), "-e", f"{site.folder}/error.log", "-p", str(site.folder), "-c", str(path)]


# -- from PyPI and npm -----------------------------------------------------------------------------------------------


def from_pypi(name: str, package: str) -> str:
    """The version of `package`, installed into an environment of its own."""
    folder = INSTALLED / name
    python = folder / "bin" / "python"
    distribution = package.partition("[")[0]
    if not (folder / ".installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run(sys.executable, "-m", "venv", folder)
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package)
        (folder / ".installed").touch()
    return run(python, "-c", f"import importlib.metadata as m; print(m.version({distribution!r}))").strip()


def litellm(site: Site) -> list[str]:
    path = site.folder / "litellm.yaml"
    entry = {"model": "openai/bench", "api_base": site.base, "api_key": "unused"}
    path.write_text(json.dumps({"model_list": [{"model_name": "bench", "litellm_params": entry}]}))
    program = str(INSTALLED / "litellm" / "bin" / "litellm")
    return [program, "--config", str(path), "--host", "127.0.0.1", "--port", str(site.port), "--num_workers", "1"]


def sglang_router(site: Site) -> list[str]:
    return [
        *(str(INSTALLED / "sglang-router" / "bin" / "python"), "-m", "sglang_router.launch_router"),
        *router_options(site),
    ]


def smg(site: Site) -> list[str]:
    return [str(INSTALLED / "smg" / "bin" / "smg"), "launch", *router_options(site)]


def router_options(site: Site) -> list[str]:
    """The one came of the other."""
    return [
        *("--host", "127.0.0.1", "--port", str(site.port), "--worker-urls", f"http://127.0.0.1:{site.upstream}"),
        *("--policy", "round_robin", "--max-concurrent-requests", "4096", "--prometheus-host", "127.0.0.1"),
        *("--prometheus-port", str(site.port + 1), "--log-level", "info"),
    ]


PORTKEY = json.dumps(
    {
        "private": True,
        "dependencies": {"@portkey-ai/gateway": "*"},
        "overrides": {"@hono/node-server": "1.13.8"},  # newer: every stream is a 500 (Portkey-AI/gateway#1389)
    }
)


def portkey_version() -> str:
    folder = INSTALLED / "portkey"
    described = folder / "node_modules" / "@portkey-ai" / "gateway" / "package.json"
    wanted = folder / "package.json"
    if not described.exists() or wanted.read_text() != PORTKEY:
        if not shutil.which("npm"):
            raise BenchError("no npm here (Debian: apt-get install npm)")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        wanted.write_text(PORTKEY)
        run("npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", folder)
    node = run("node", "--version").strip()
    return f"{json.loads(described.read_text())['version']} (Node {node})"


def portkey(site: Site) -> list[str]:
    server = INSTALLED / "portkey" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    return ["node", str(server), f"--port={site.port}", "--headless"]


ROOT = HERE.parent
OURS = Peer("ours", "manallm-proxy", our_version, ours, model="mana/bench", environ={"PYTHONPATH": str(ROOT)})
WAS = Peer(
    *("before", "manallm-proxy, before", before_version, before),
    model="mana/bench",
    environ={"PYTHONPATH": str(INSTALLED / "before")},
)  # fmt: skip
NGINX = Peer("nginx", "nginx", nginx_version, nginx)


def floor(name: str) -> Callable[[Site], list[str]]:
    return lambda site: [sys.executable, "-m", "bench.floor", name, str(site.port), str(site.upstream)]


FLOOR = Peer(
    *("protocols", "two protocols in Python", lambda: "", floor("protocols")), environ=OURS.environ, asked=True
)  # fmt: skip
STACK = Peer(
    *("stack", "our server and pool alone", lambda: "", floor("stack")), environ=OURS.environ, asked=True
)  # fmt: skip


def everyone(upstream: int) -> list[Peer]:
    """All that a full run measures. Portkey's gateway is told its upstream by each request."""
    return [
        OURS,
        *([WAS] if BEFORE else []),
        NGINX,
        Peer(
            "sglang-router",
            "sglang-router",
            lambda: from_pypi("sglang-router", "sglang-router"),
            sglang_router,
            start_timeout=60,
        ),
        Peer("smg", "smg", lambda: from_pypi("smg", "smg"), smg, start_timeout=60),
        Peer(
            "portkey",
            "Portkey gateway",
            portkey_version,
            portkey,
            environ={"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"},
            headers={
                "Authorization": "Bearer unused",
                "x-portkey-provider": "openai",
                "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1",
            },
            start_timeout=60,
            everywhere=True,
        ),
        Peer(
            "litellm",
            "LiteLLM",
            lambda: from_pypi("litellm", "litellm[proxy]"),
            litellm,
            environ={
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "LITELLM_LOG": "ERROR",
                "LITELLM_TELEMETRY": "False",
                "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # no keys, as with us: less work for it
            },
            headers={"Authorization": "Bearer unused"},
            start_timeout=120,
        ),
        FLOOR,
        STACK,
    ]
