"""What a process does without: modules of features that nobody configured, and attrs' copies of its functions."""

from __future__ import annotations

import linecache
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.targets import Target
from manallm_proxy.process.pages import COLLAPSE, DONTNEED, Advice, advices
from tests.proxy import openai, process, settings

HUGE = 2 << 20
UNUSED = (
    *("google.genai", "genai_prices", "redis", "opentelemetry", "pydantic", "httpx"),
    *("aiohttp.web", "aiohttp.web_app", "aiohttp.web_urldispatcher", "aiohttp.web_fileresponse", "aiohttp_sse"),
    *("aioprometheus.service", "cattrs.preconf", "difflib"),
    *("manallm_proxy.providers.gemini", "manallm_proxy.providers.native", "manallm_proxy.providers.ollama.wire"),
    *("manallm_proxy.process.supervisor", "manallm_proxy.cli.discovery", "manallm_proxy.observe.traces"),
)


async def test_a_process_imports_what_its_configuration_needs(tmp_path: Path) -> None:
    """The real one, over one provider of OpenAI's API: whatever belongs to another feature is not read at all."""
    config = settings({"gpu": openai("http://127.0.0.1:9/v1")})
    async with process(config, tmp_path, {"PYTHONPROFILEIMPORTTIME": "1"}, anew=True) as running:
        imported = set(re.findall(r"import time:.*\| +(\S+)\n", "".join(running.output)))
    assert {"aiohttp.web_protocol", "manallm_proxy.providers.openai.wire"} <= imported
    assert imported & set(UNUSED) == set()


def _pair(make_define: Any, make_frozen: Any) -> list[Any]:
    """The same classes by two makers."""

    @make_define
    class Counts:
        number: int
        _hidden: str = attrs.field(default="h", repr=False)
        uncounted: int = attrs.field(default=0, eq=False)
        more: Any = None

    @make_frozen
    class Key:
        name: str
        rest: tuple[int, ...] = ()

    @make_define
    class Heir(Key):
        own: int = 0

    @make_define(eq=False)
    class Service:
        other: Any = None

    @make_frozen
    class Nothing:
        pass

    @make_define
    class Told(Exception):
        why: str

    @make_define
    class Speaks:
        word: str = "w"

        def __repr__(self) -> str:
            return "mine"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    return [Counts, Key, Heir, Service, Nothing, Told, Speaks]


def test_records_do_what_attrs_does() -> None:
    """Class by class, the same values with the same results: text, equality, hash, pickling, mistakes."""

    def told(classes: list[Any]) -> list[Any]:
        counts, key, heir, service, nothing, failed, speaks = classes
        one, two = counts(1, "a", 2), counts(1, "a", 3)
        loop = service()
        loop.other = loop
        values = [one, two, counts(2), key("a"), key("a", (1,)), heir("a"), loop, nothing(), failed("x"), speaks()]
        fresh = [counts(1, "a", 2), key("a"), heir("a"), service(), nothing(), failed("x"), speaks()]
        facts: list[Any] = [repr(each) for each in values]
        facts += [(a == b, a != b) for a in values for b in fresh]
        facts += [_tried(_same_hash, each) for each in values]
        facts += [_tried(_set_first, each) for each in values]
        facts += [[(f.name, f.alias, f.repr, f.eq) for f in attrs.fields(cls)] for cls in classes]
        facts += [attrs.evolve(one, number=5).number, attrs.asdict(key("a")), sorted(one.__getstate__())]
        state = key("b", (2,)).__getstate__()
        copied = key.__new__(key)
        copied.__setstate__(state)
        return [*facts, copied == key("b", (2,)), one.__eq__(3) is NotImplemented]

    assert told(_pair(define, frozen)) == told(_pair(attrs.define, attrs.frozen))
    assert not [name for name in linecache.cache if name.startswith("<attrs generated methods manallm_proxy.")]


def _fields(record: Any) -> list[Any]:
    return [getattr(record, each.name) for each in attrs.fields(type(record))]


def _same_hash(record: Any) -> bool:
    return hash(record) == hash(type(record)(*_fields(record)))


def _set_first(record: Any) -> None:
    setattr(record, attrs.fields(type(record))[0].name, "new")


def _tried(does: Callable[[Any], Any], record: Any) -> Any:
    """What it gives, or the name of what it raises."""
    try:
        return does(record)
    except Exception as error:
        return type(error).__name__


def test_a_configuration_can_be_pickled() -> None:
    """As a supervisor hands it to its workers: frozen, and with what it had."""
    target = Target("gpu", "small")
    again = pickle.loads(pickle.dumps(target))
    assert (again, hash(again)) == (target, hash(target))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        again.model = "other"


SMAPS = """\
55d000000000-55d000100000 r-xp 00001000 08:01 123                        /usr/bin/python3.11
Size:               1024 kB
KernelPageSize:        4 kB
Rss:                 800 kB
Pss:                 800 kB
Shared_Clean:          0 kB
Shared_Dirty:          0 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
VmFlags: rd ex mr mw me
55d000100000-55d000180000 r--p 00101000 08:01 123                        /usr/bin/python3.11
Size:                512 kB
Rss:                 400 kB
Shared_Dirty:          0 kB
Private_Clean:       400 kB
Private_Dirty:         0 kB
55d000180000-55d000190000 r--p 00181000 08:01 123                        /usr/bin/python3.11
Size:                 64 kB
Rss:                  64 kB
Shared_Dirty:          0 kB
Private_Clean:         0 kB
Private_Dirty:        64 kB
55d000200000-55d000300000 rw-p 00200000 08:01 123                        /usr/bin/python3.11
Size:               1024 kB
Rss:                1024 kB
Shared_Dirty:          0 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
55d100100000-55d100800000 rw-p 00000000 00:00 0                          [heap]
Size:               7168 kB
Rss:                7000 kB
Shared_Dirty:         16 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
7f1000000000-7f1000800000 rw-p 00000000 00:00 0 
Size:               8192 kB
Rss:                 132 kB
Shared_Dirty:          0 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
7f2000000000-7f2000180000 rw-p 00000000 00:00 0 
Size:               1536 kB
Rss:                1536 kB
Shared_Dirty:          0 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
7ffe00000000-7ffe00002000 r-xp 00000000 00:00 0                          [vdso]
Size:                  8 kB
Rss:                   4 kB
Shared_Dirty:          0 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
"""  # noqa: W291  # as the kernel writes them


def test_code_of_the_start_is_given_back_and_objects_are_joined() -> None:
    """A program's code and constants; whole blocks of the heap.

    Not what the linker wrote, its data, a stack, less than a block; nothing after a fork.
    """
    code = [Advice(0x55D000000000, 0x100000, DONTNEED), Advice(0x55D000100000, 0x80000, DONTNEED)]
    blocks = [Advice(start, HUGE, COLLAPSE) for start in range(0x55D100200000, 0x55D100800000, HUGE)]
    assert list(advices(SMAPS, HUGE)) == [*code, *blocks]
    assert list(advices(SMAPS, 0)) == code
    assert list(advices("", HUGE)) == []
    assert list(advices(SMAPS.replace("  16 kB", "4000 kB"), HUGE)) == []


def test_a_process_goes_on_with_tidy_pages() -> None:
    """The real kernel, told by the real call: all that was there is there, and less code is resident.

    A fork is known at once.
    """
    code = """if True:
        import hashlib, json, os, ssl
        from manallm_proxy.process import pages
        def resident():
            return int(open("/proc/self/status").read().split("RssFile:")[1].split()[0])
        kept = [str(number) for number in range(200_000)]
        ssl.create_default_context()
        before = resident()
        pages.advise_kernel()
        after = resident()
        assert kept == [str(number) for number in range(200_000)]
        assert json.loads(json.dumps({"a": [1]})) == {"a": [1]} and hashlib.sha256(b"").hexdigest()[:4] == "e3b0"
        print(after < before, (before, after))
        if (child := os.fork()) == 0:
            pages.advices = None  # not even asked
            pages.advise_kernel()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True"), done.stdout
