"""Providers that list thousands of models: the lists are read and sorted in threads, and asked without a walk through.

A list of 10,000 held the loop for a tenth of a second at each probe, and as long again for each new question.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.provider import ModelInfo
from manallm_proxy.contract.targets import Chain, Entry, Target
from manallm_proxy.providers.openai import wire
from manallm_proxy.routing import best_model
from manallm_proxy.routing.best_model import Ranked, fits
from manallm_proxy.routing.catalog import Catalog, Listed
from tests.proxy import openai, proxy, settings
from tests.upstreams import answers, each, upstream

MANY = 3000
LISTED = [ModelInfo(f"vendor/model-{n}", created=n) for n in range(MANY)]
CHAT: frozenset[str] = frozenset()
NAMES = ["a", "A", "b:latest", "b", "bge-m3", "llava", "c-cloud", "m-7b", "m-70b", "whisper", "m-1b:latest"]
CAPABILITIES = [None, frozenset({"completion"}), frozenset({"completion", "tools"}), frozenset({"embedding"})]
MODELS = st.builds(
    ModelInfo,
    id=st.sampled_from(NAMES),
    created=st.integers(0, 2),
    capabilities=st.sampled_from(CAPABILITIES),
    size=st.integers(0, 1),
)


async def test_a_long_list_is_read_and_sorted_in_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its rows the event loop's thread sees none."""
    threads: set[tuple[str, threading.Thread]] = set()

    def noting(works: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            threads.add((works.__name__, threading.current_thread()))
            return works(*arguments)

        return noted

    monkeypatch.setattr(wire, "_listed", noting(wire._listed))
    monkeypatch.setattr(best_model, "fits", noting(fits))
    async with upstream(each(answers), [model.id for model in LISTED]) as server:
        async with proxy(settings({"gpu": openai(server.url)}), tmp_path) as p:
            assert len(list(p.app.generation.catalog.models("gpu"))) == MANY
    assert {what for what, _ in threads} == {"_listed", "fits"}
    assert threading.main_thread() not in {thread for _, thread in threads}


@pytest.mark.parametrize(
    ("needs", "prefer"),
    [
        (CHAT, ()),
        (CHAT, ("vendor/model-17",)),
        (CHAT, ("absent", "*-1234")),
        (frozenset({"tools"}), ("*-1234",)),
        (frozenset({"vision"}), ()),
        (frozenset({"embedding"}), ()),
    ],
)
def test_no_question_looks_at_names_again(
    needs: frozenset[str], prefer: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever model serves, and where none does."""
    catalog, looks = Catalog(), [0]
    catalog.learn("gpu", LISTED)

    def counted(model: ModelInfo, needs: frozenset[str]) -> bool:
        looks[0] += 1
        return fits(model, needs)

    monkeypatch.setattr(best_model, "fits", counted)
    catalog.filled(Chain(None, (Entry(Target("gpu", "*"), prefer=prefer),)), needs)
    assert looks[0] == 0


def test_the_same_list_again_is_nothing_new() -> None:
    """What was chosen from it stays chosen, and nothing is sorted."""
    first = Listed.after(None, LISTED)
    assert Listed.after(first, list(LISTED)) is first
    assert Listed.after(first, LISTED[1:]) is not first


def _by_looking_at_all(
    models: list[ModelInfo], needs: frozenset[str], prefer: tuple[str, ...], taken: set[str]
) -> ModelInfo | None:
    """The rule as it stands in `best_model`, model by model."""
    patterns = [best_model._pattern(each) for each in prefer]

    def place(model: ModelInfo) -> int:
        found = (n for n, pattern in enumerate(patterns) if pattern.fullmatch(model.id.lower()))
        return next(found, len(patterns))

    fitting = [model for model in models if model.id not in taken and fits(model, needs)]
    return min(fitting, key=lambda model: (place(model), best_model._rank(model)), default=None)


@given(
    st.lists(MODELS, unique_by=lambda model: model.id),
    st.frozensets(st.sampled_from(["tools", "vision", "embedding"])),
    st.lists(st.sampled_from(["a", "B", "m-*", "*b", "*", "absent", "llava"]), max_size=3),
    st.sets(st.sampled_from(NAMES)),
)
def test_the_choice_is_the_same(
    models: list[ModelInfo], needs: frozenset[str], prefer: list[str], taken: set[str]
) -> None:
    found = Ranked.of(models).best(needs, tuple(prefer), taken)
    assert found == _by_looking_at_all(models, needs, tuple(prefer), taken)
