"""All names of PyYAML that are private or undocumented, checked at import. Written for PyYAML 6.0.

1. ``yaml_implicit_resolvers`` and ``yaml_constructors`` hold the types of YAML 1.1, including dates and ``no`` for
   false. With empty ones only our additions are left.
2. ``compose_node`` is called for each node: the only place to limit the depth before the nodes exist.
3. ``compose_mapping_node`` sees a mapping's keys as they are written; when a constructor runs, ``<<`` has merged others
   among them, and of a key that is given twice only the last is left.
4. ``construct_mapping`` with ``flatten_mapping`` makes a mapping from nodes, after ``<<`` has been merged.
5. ``construct_yaml_seq`` and ``construct_yaml_map`` make lists and mappings in two steps, so that anchors work.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

import yaml

TAG: Final = "tag:yaml.org,2002:"


EXPANDED_LIMIT: Final = 100_000
"""Max values of one file with aliases expanded: ten lines of anchors can make billions."""


class ExpandsTooMuch(yaml.MarkedYAMLError):
    """More than EXPANDED_LIMIT values, or an anchor that contains itself."""


class StrictLoader(yaml.SafeLoader):
    """Knows sequences, mappings and ``<<``; subclasses add scalars. Keys are text as it is written.

    Raises RecursionError beyond ``deepest`` levels.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # declared so by PyYAML
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}
    deepest: ClassVar[int] = 40

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}

    def check_keys(self, node: yaml.MappingNode) -> None:
        """Called with each mapping, before ``<<`` is merged."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > self.deepest:
            raise RecursionError
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and not (is_alias and node in self._sizes):
            self._measure(node, holds_itself=is_alias)
        return node

    def _measure(self, node: yaml.Node, holds_itself: bool) -> None:
        """Counts the values in `node`. The nodes inside have been measured before."""
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inside = node.value
        elif isinstance(node, yaml.MappingNode):
            inside = [each for pair in node.value for each in pair]
        self._sizes[node] = size = 1 + sum(self._sizes[each] for each in inside)
        if holds_itself or size > EXPANDED_LIMIT:
            raise ExpandsTooMuch(problem_mark=node.start_mark)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        self.check_keys(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """``1:`` is the key "1". Keys that are not scalars are left out: `check_keys` has seen them."""
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "expected a mapping", node.start_mark)
        self.flatten_mapping(node)
        pairs = ((key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode))
        return {key.value: self.construct_object(value, deep=deep) for key, value in pairs}


StrictLoader.add_implicit_resolver(TAG + "merge", re.compile(r"<<\Z"), ["<"])
StrictLoader.yaml_constructors[TAG + "seq"] = StrictLoader.construct_yaml_seq
StrictLoader.yaml_constructors[TAG + "map"] = StrictLoader.construct_yaml_map


class _Probe(StrictLoader):
    """Knows text and the number 1; anything else is None."""

    yaml_constructors: ClassVar[dict[str | None, Any]] = dict(StrictLoader.yaml_constructors)
    deepest = 4

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.keys: list[list[str]] = []

    def check_keys(self, node: yaml.MappingNode) -> None:
        self.keys.append([key.value for key, _ in node.value])


_Probe.add_implicit_resolver(TAG + "int", re.compile(r"1\Z"), ["1"])
_Probe.yaml_constructors[TAG + "str"] = _Probe.construct_scalar
_Probe.yaml_constructors[None] = lambda loader, node: None
_Probe.yaml_constructors[TAG + "int"] = lambda loader, node: int(loader.construct_scalar(node))


def check() -> None:
    """Raises ImportError if PyYAML does not call what is overridden here."""
    try:
        probe = _Probe("a: &x {1: no, d: 2001-01-01}\nb: {<<: *x, 1: 1}\nc: [*x]\n")
        first = {"1": "no", "d": "2001-01-01"}
        works = (
            probe.get_single_data() == {"a": first, "b": {**first, "1": 1}, "c": [first]}
            and probe.keys == [["1", "d"], ["<<", "1"], ["a", "b", "c"]]
            and _Probe("!!bool no").get_single_data() is None
            and not _is_too_deep("[[[[]]]]")
            and _is_too_deep("[[[[[]]]]]")
            and yaml.reader.ReaderError("", 7, 0, "", "").position == 7
        )
    except Exception:
        works = False
    if not works:
        raise ImportError(
            f"PyYAML {yaml.__version__}: its loader does not behave as expected. "
            "Install the version in constraints.txt, or adapt config/yaml_internals.py and run its tests."
        )


def _is_too_deep(text: str) -> bool:
    try:
        _Probe(text).get_single_data()
    except RecursionError:
        return True
    return False


check()
