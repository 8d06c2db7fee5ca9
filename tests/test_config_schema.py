"""The schema for editors: it takes all that we take, and marks what it can see; and the words for each key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from manallm_proxy.config.described import EACH, FILES, Place, described, parse
from manallm_proxy.config.schema import schema
from manallm_proxy.config.yaml_file import read
from tests.cases import every
from tests.command import ROOT
from tests.proxy import FAST, run
from tests.slips import ALIASES, PROXY, slipped, slips

SCHEMA = schema()
CHECK = jsonschema.Draft7Validator(SCHEMA)
SHIPPED = [ROOT / "config" / name for name in ("proxy.yaml", "aliases.yaml", "quickstart.yaml")]
PROVIDERS = "providers: {groq: {kind: openai, base_url: 'http://127.0.0.1:9/v1'}}\n"
CHAINS = "aliases: {mana/test: {chain: [groq/m]}}\n"

BEYOND = (
    "no provider|no alias|an alias is|names an alias|can be reached by others|is not set|cannot be read|no such file|"
    "already|by kind ollama only|'local: true'|from 1 to 65535|ends in an endpoint|holds a user|bytes:|names no model|"
    "^right$"
)
"""What takes the rest of the configuration, the environment or other files; and what is too much for a pattern."""


class Itself(dict[str, str]):
    """An environment in which each variable is its own name, as an editor sees it."""

    def get(self, name: str, default: Any = None) -> Any:
        return None if name == "CREDENTIALS_DIRECTORY" else f"${{{name}}}"


def seen(text: str, folder: Path) -> Any:
    """The file as an editor reads it; None where it is no YAML, or not of ours."""
    (folder / "seen.yaml").write_text(text)
    faults: list[str] = []
    found = read(folder / "seen.yaml", Itself(), faults.append)
    return None if faults else found


def marks(value: Any) -> list[str]:
    """The places that it marks."""
    return sorted({".".join(map(str, error.absolute_path)) for error in CHECK.iter_errors(value)})


async def test_the_command_prints_it() -> None:
    """One document, sound itself."""
    code, output = await run("schema")
    assert (code, json.loads(output)) == (0, json.loads(json.dumps(SCHEMA)))
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@every(SHIPPED)
def test_what_ships_has_no_mark(path: Path) -> None:
    """Each file as it stands, variables included."""
    assert marks(read(path, Itself(), lambda what: None)) == []


def test_what_docs_show_has_no_mark(tmp_path: Path) -> None:
    """Every YAML block of every page."""
    blocks = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            found = seen(block.replace('sha256: "..."', f"sha256: {'0' * 64}"), tmp_path)
            if isinstance(found, dict) and set(found) <= set(SCHEMA["properties"]):
                blocks += 1
                assert marks(found) == [], f"{page.name}: {block}"
    assert blocks > 10


def test_a_slip_that_it_marks_is_one(tmp_path: Path) -> None:
    """Of the table of what people write: nearly all that is YAML is marked, and nothing that is right."""
    assert marks(seen(PROXY, tmp_path)) == marks(seen(ALIASES, tmp_path)) == []
    unseen = []
    for old, new, wanted in slips():
        found = [seen(text, tmp_path) for text in slipped(old, new)]
        if None in found:
            continue  # the editor says so without us
        if not any(map(marks, found)):
            unseen.append((wanted[0] if wanted else "right", new))
        else:
            assert wanted, new
    assert [each for each in unseen if not re.search(BEYOND, each[0])] == []


@every(
    [
        ("foo: 1", ""),
        ("listen: 3", "listen"),
        ("listen: {prot: 1}", "listen"),
        ('listen: {port: "3"}', "listen.port"),
        ("listen: {port: 3.7}", "listen.port"),
        ("listen: {port: true}", "listen.port"),
        ("listen: {port: 65536}", "listen.port"),
        ("listen: {port: }", "listen.port"),
        ("listen: {host: 127}", "listen.host"),
        ("listen: {host: '[::1]'}", "listen.host"),
        ("metrics: {enabled: 'false'}", "metrics.enabled"),
        ("metrics: {enabled: no}", "metrics.enabled"),
        ("timeouts: {idle: '3'}", "timeouts.idle"),
        ("timeouts: {idle: 0}", "timeouts.idle"),
        ("streaming: {heartbeat: -1}", "streaming.heartbeat"),
        ("limits: {body: 1.5}", "limits.body"),
        ("limits: {body: 1.5MiB}", "limits.body"),
        ("limits: {body: 0}", "limits.body"),
        ("cors: {origins: abc}", "cors.origins"),
        ("cors: {origins: ['*', 3]}", "cors.origins.1"),
        ("log: {level: wrn}", "log.level"),
        ("alias_prefix: mana", "alias_prefix"),
        ("aliases_file: a.yaml", ""),
        ("providers: {groq: {}}", "providers.groq"),
        ("providers: {groq: }", "providers.groq"),
        ("providers: {groq: {kind: opnai}}", "providers.groq.kind"),
        ("providers: {groq: {kind: openai}}", "providers.groq"),
        ("providers: {'a b': {kind: ollama}}", "providers"),
        ("providers: {groq: {kind: loopback, base_url: 'http://x'}}", "providers.groq.base_url"),
        ("providers: {groq: {kind: ollama, base_url: 'ftp://x'}}", "providers.groq.base_url"),
        ("providers: {groq: {kind: ollama, api_key: 'a b'}}", "providers.groq.api_key"),
        ("providers: {groq: {kind: ollama, api_key: a, api_key_file: b}}", "providers.groq"),
        ("providers: {groq: {kind: ollama, timeouts: {conect: 1}}}", "providers.groq.timeouts"),
        (
            "providers: {groq: {kind: ollama, extra_retryable_statuses: [200]}}",
            "providers.groq.extra_retryable_statuses.0",
        ),
        ("aliases: {mana/test: {chain: []}}", "aliases.mana/test.chain"),
        ("aliases: {mana/test: {chain: [groq]}}", "aliases.mana/test.chain.0"),
        ("aliases: {mana/test: {chain: [{target: groq/m, colt: next}]}}", "aliases.mana/test.chain.0"),
        ("aliases: {mana/test: {chain: [{target: groq/m, cold: maybe}]}}", "aliases.mana/test.chain.0.cold"),
        ("aliases: {mana/test: {chain: [groq/m], fallback_on: [500]}}", "aliases.mana/test.fallback_on.0"),
        ("aliases: {test: {chain: [groq/m]}}", "aliases"),
        ("auth: {keys: [{name: a, sha256: b}]}", "auth.keys.0.sha256"),
        ("auth: {keys: [{name: a, key: b}]}", "auth.keys.0"),
        ("warm: [m]", "warm.0"),
    ]
)
def test_a_mistake_is_marked_where_it_stands(text: str, place: str) -> None:
    """At the value, or at what holds an unknown key; and nothing else is."""
    base = yaml.safe_load(PROVIDERS + CHAINS)
    changed = read_yaml(text)
    assert marks(base) == []
    assert marks({**base, **changed}) == [place], text


def read_yaml(text: str) -> Any:
    """As YAML 1.2 reads it, in which ``no`` is text: editors do."""
    loader = yaml.SafeLoader(text)
    loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in each if not (tag.endswith(":bool") and first in "yYnNoO")]
        for first, each in loader.yaml_implicit_resolvers.items()
    }
    return loader.get_single_data()


@every(["30s", "500ms", 3, 0.5, "1h", "${T}", "${T:-30s}"])
def test_all_forms_of_a_duration(value: object) -> None:
    """Numbers, text with units, variables."""
    assert marks({"timeouts": {"idle": value}}) == []


def test_what_tests_serve_has_no_mark() -> None:
    """The settings of our own tests."""
    assert marks(FAST) == []


def keys_of(part: Mapping[str, Any], place: Place = ()) -> Iterator[Place]:
    """All places that the schema knows; a part that is shown elsewhere (``timeouts``) counts once."""
    for each in (part, *part.get("anyOf", ())):
        for name, inner in each.get("properties", {}).items():
            if isinstance(inner, dict):
                yield (*place, name)
                if name != "timeouts" or not place:
                    yield from keys_of(inner, (*place, name))
        inside = each.get("additionalProperties") or each.get("items")
        if isinstance(inside, dict):
            yield from keys_of(inside, (*place, EACH))


def test_each_key_has_its_words() -> None:
    """And no words are about a key that there is not."""
    words = {key.place: key for name in FILES for key in described(name).keys}
    known = set(keys_of(SCHEMA))
    assert [key for key in known if key not in words or not words[key].text] == []
    assert [place for place in words if place not in known] == []


def test_each_value_is_checked() -> None:
    """A reader that the schema does not know would let anything pass."""

    def unchecked(part: Mapping[str, Any], name: str) -> Iterator[str]:
        if not {"type", "enum", "anyOf"} & part.keys():
            yield name
        for key, inner in part.get("properties", {}).items():
            yield from unchecked(inner, f"{name}.{key}")
        for inner in (part.get("items"), part.get("additionalProperties"), *part.get("anyOf", ())):
            if inner:
                yield from unchecked(inner, name)

    assert list(unchecked(SCHEMA, "")) == []


def test_words_are_found_as_they_stand() -> None:
    """Live keys and those that are commented out, with the lines that go on; prose is none."""
    file = parse(
        "# What it is.\n# In two lines.\n#\n# Note: this is prose\n\n"
        "part:                # all of it\n  key: 30s           # one\n                     # and more\n"
        "  # other: [a]       # two\n                     # below\n  bare: []\n  # - item: x        # three\n"
        "# top: 4             # four\n# Of each:\n#   inner: 5         # five\n"
        "providers:\n  name:\n    kind: x          # six\n    inner: 7\n"
    )
    assert [(key.name, key.value, key.text) for key in file.keys] == [
        ("part", "", "all of it"),
        ("part.key", "30s", "one and more"),
        ("part.other", "[a]", "two below"),
        ("part.bare", "[]", ""),
        ("part.bare[].item", "x", "three"),
        ("top", "4", "four"),
        ("providers.NAME.inner", "5", "five"),
        ("providers", "", ""),
        ("providers.NAME.kind", "x", "six"),
    ]
    assert file.head == ("What it is. In two lines.", "Note: this is prose")
