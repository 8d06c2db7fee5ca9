"""Configurations that tests have written themselves are read with libyaml's scanner and parser where it is there.

PyYAML's own in Python, which ours uses, takes 1.4 ms more for each of some two thousand proxies. All else is ours: what
is composed, checked and made of the values. People's files, with people's mistakes, are read without this: by
`test_config` and others, by each command, each process, and each reload.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from manallm_proxy.config import yaml_file

if TYPE_CHECKING or not yaml.__with_libyaml__:
    Loader = yaml_file._Loader
else:

    class Loader(yaml.cyaml.CParser, yaml_file._Loader):
        """Its parser makes nodes too, in C; here Python does, as always."""

        check_node, get_node, get_single_node = Composer.check_node, Composer.get_node, Composer.get_single_node

        def __init__(self, text: str, environ: Mapping[str, str], report: yaml_file.Report) -> None:
            yaml.cyaml.CParser.__init__(self, text)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)
            self._depth, self._sizes = 0, dict[yaml.Node, Any]()
            self.environ, self.report = environ, report


@contextmanager
def by_libyaml() -> Iterator[None]:
    """What is read meanwhile."""
    ours = yaml_file._Loader
    yaml_file._Loader = Loader  # type: ignore[misc]  # a subclass
    try:
        yield
    finally:
        yaml_file._Loader = ours  # type: ignore[misc]  # as it was
