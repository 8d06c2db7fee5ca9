"""PyYAML's undocumented names: what breaks when one goes, or stops doing what we need it for."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from manallm_proxy.config import yaml_internals
from manallm_proxy.config.yaml_internals import StrictLoader, check


def test_it_holds_for_the_version_that_is_installed() -> None:
    """The import has checked it already; here by name."""
    check()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (yaml.composer.Composer, "compose_node"),
        (yaml.composer.Composer, "compose_mapping_node"),
        (yaml.constructor.SafeConstructor, "flatten_mapping"),
        (StrictLoader, "compose_node"),
        (StrictLoader, "compose_mapping_node"),
        (StrictLoader, "construct_mapping"),
    ],
)
def test_a_name_that_is_gone_is_an_error_that_says_what_to_do(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At import, not as a file that is read differently."""
    monkeypatch.delattr(owner, name)
    with pytest.raises(ImportError) as told:
        check()
    assert f"PyYAML {yaml.__version__}" in str(told.value)
    assert "constraints.txt" in str(told.value)


@pytest.mark.parametrize("name", ["yaml_implicit_resolvers", "yaml_constructors"])
def test_types_of_yaml_1_1_that_come_back_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the library kept them under another name."""
    for loader in (StrictLoader, yaml_internals._Probe):
        monkeypatch.setattr(loader, name, getattr(yaml.SafeLoader, name))
    with pytest.raises(ImportError):
        check()


def test_a_loader_that_calls_other_names_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are still there, but have no effect any more."""

    def unhooked(self: Any, parent: Any, index: Any) -> Any:
        return yaml.ScalarNode("tag:yaml.org,2002:str", self.get_event() and "a")

    monkeypatch.setattr(yaml.composer.Composer, "compose_node", unhooked)
    with pytest.raises(ImportError):
        check()
