"""A reload of a thousand aliases or keys: what takes long runs in threads; the loop was held for 43 ms."""

from __future__ import annotations

import gc
import hashlib
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.cli import serve
from manallm_proxy.config.changes import changes
from manallm_proxy.config.load import load
from manallm_proxy.gateway import client_keys
from manallm_proxy.gateway.prepared import Prepared
from manallm_proxy.process import pages, reload
from manallm_proxy.process.app import App
from tests.proxy import Proxy, proxy, settings
from tests.waiting import until

LOOP = {"loop": {"kind": "loopback"}}


def keys(number: int) -> dict[str, Any]:
    rows = [
        {"name": f"k{n}", "sha256": hashlib.sha256(b"%d" % n).hexdigest(), "models": [f"mana/{number}-*"]}
        for n in range(number)
    ]
    return {"auth": {"keys": rows}}


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[threading.Thread]]:
    """By name: the threads in which it ran."""
    seen: dict[str, set[threading.Thread]] = {}

    def noting(name: str, works: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            seen.setdefault(name, set()).add(threading.current_thread())
            return works(*arguments)

        return noted

    monkeypatch.setattr(App, "read", noting("read", App.read))
    monkeypatch.setattr(Prepared, "of", noting("prepare", Prepared.of))
    monkeypatch.setattr(reload, "changes", noting("changes", changes))
    monkeypatch.setattr(client_keys, "_any_of", noting("patterns", client_keys._any_of))
    monkeypatch.setattr(reload, "_unpickled", noting("unpickled", reload._unpickled))
    return seen


async def write_keys(p: Proxy, number: int) -> None:
    p.write({**settings(LOOP), **keys(number)})
    await p.app.reload()
    assert len(list(p.app.generation.keyring)) == number


async def test_a_reload_computes_in_threads(tmp_path: Path, threads: dict[str, set[threading.Thread]]) -> None:
    """Reading, patterns of keys, and what the log says of the changes."""
    async with proxy({**settings(LOOP), **keys(1)}, tmp_path) as p:
        threads.clear()
        await write_keys(p, 3)
        await write_keys(p, 2)  # those that stay have other patterns now
        assert "client key" in p.log.getvalue()
    assert threads.keys() == {"read", "prepare", "changes", "patterns"}
    assert not [name for name, where in threads.items() if threading.main_thread() in where]


async def test_so_does_a_worker(tmp_path: Path, threads: dict[str, set[threading.Thread]]) -> None:
    """What its supervisor has read comes as one long text."""
    async with proxy({**settings(LOOP), **keys(1)}, tmp_path) as p:
        p.write({**settings(LOOP), **keys(3)})
        new = load(p.path, {})
        threads.clear()
        told: list[tuple[str, ...]] = []
        p.app.prepare_pickled(1, pickle.dumps(new), told.append)
        await until(lambda: bool(told))
        assert told == [()]
        p.app.adopt_prepared(1)
        assert len(list(p.app.generation.keyring)) == 3
    assert threads.keys() == {"unpickled", "prepare", "patterns"}
    assert not [name for name, where in threads.items() if threading.main_thread() in where]


async def test_the_start_is_over_when_clients_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """All objects are looked at before the proxy listens; what it tells the kernel later, a thread does: 100 ms."""
    did: list[object] = []
    monkeypatch.setattr(gc, "collect", lambda *generation: did.append("collect"))
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(pages, "advise_kernel", lambda: did.append(threading.current_thread()))
    await serve.tune_memory()
    [where] = did
    assert where is not threading.main_thread()
