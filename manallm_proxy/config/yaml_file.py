"""Reads one YAML file strictly and substitutes ``${NAME}``.

Stricter than PyYAML, which implements YAML 1.1: only ``true`` and ``false`` are booleans (``no`` is a string), ``010``
and ``1:30`` are strings, there are no dates, and a duplicate key is a mistake; PyYAML would keep the last one.

``${NAME}`` and ``${NAME:-default}`` are substituted in string values, never in keys; ``$${`` is a literal ``${``.
A value comes from the file ``$CREDENTIALS_DIRECTORY/NAME`` (systemd's LoadCredential), else from the environment;
an empty value counts as not set.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import yaml

from manallm_proxy.config.yaml_internals import EXPANDED_LIMIT, TAG, ExpandsTooMuch, StrictLoader
from manallm_proxy.contract.records import frozen

SIZE_LIMIT: Final = 2**20
"""Bytes of one file."""
_BOOL: Final = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)|\.nan")
_NULL: Final = re.compile(r"~|null|Null|NULL|")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
"""A lone surrogate, from an escape or from bytes in the environment; UTF-8 cannot encode it."""
_ODD_BLANK: Final = re.compile("[\u00a0\u1680\u2000-\u200f\u2028\u2029\u202f\u205f\u3000\ufeff]")
"""Characters that look like a blank but are none to YAML, from text copied from web pages."""
_VARIABLE: Final = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-((?:(?!\$\{)[^}])*))?\})?")

_KEY_LIKE: Final = re.compile(r"(sk-|gsk_|pk-|xai-|hf_|r8_|tgp_|AIza)(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{12,}")

Report = Callable[[str], None]


class Filled(str):
    """A value that was exactly one ``${NAME}``. Where a number is expected, it is read as YAML would read it."""

    __slots__ = ("variable",)
    variable: str
    """Its name; empty if the default was taken."""

    @property
    def scalar(self) -> str | int | float | bool | None:
        """The value as a plain YAML scalar: ``"3025"`` -> 3025, ``"true"`` -> True, ``""`` -> None."""
        return scalar(self)


@frozen
class Unset:
    """A value with a ``${NAME}`` that is not set and has no default."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{' and '.join(self.names)} {'is' if len(self.names) == 1 else 'are'} not set"


def scalar(text: str) -> str | int | float | bool | None:
    """The value of a plain (unquoted) YAML scalar."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return text


def read(path: Path, environ: Mapping[str, str], report: Report) -> dict[str, Any] | None:
    """The file's top-level mapping, or None if it has none, for a reason that was reported.

    Mistakes are reported with their lines. No message quotes the file's text, which may contain a key.
    """
    try:
        text = text_of(path)
    except FileNotFoundError:
        report("no such file")
        return None
    except OSError as error:
        report(f"cannot be read ({error.strerror or 'input/output error'})")
        return None
    except ValueError:
        report("is not UTF-8 text")
        return None
    try:
        loader = _Loader(text, environ, report)
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        report(_what_is_wrong(error, text))
        return None
    except RecursionError:
        report("is nested too deeply")
        return None
    if content is None:
        report("is empty")
        return None
    if not isinstance(content, dict):
        report("must hold keys and values at its top level")
        return None
    return content


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading. Raises OSError, also for others, which may block or never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "it is no regular file")


def text_of(path: Path) -> str:
    """The text of a regular file. Raises OSError, also for one over SIZE_LIMIT; ValueError if it is not UTF-8."""
    with open_regular(path) as file:
        data = file.read(SIZE_LIMIT + 1)
    if len(data) > SIZE_LIMIT:
        raise OSError(errno.EFBIG, f"it is over {SIZE_LIMIT >> 20} MiB")
    return data.decode("utf-8-sig")


class _Loader(StrictLoader):
    def __init__(self, text: str, environ: Mapping[str, str], report: Report) -> None:
        super().__init__(text)
        self.environ = environ
        self.report = report

    def report_at(self, node: yaml.Node, mistake: str) -> None:
        self.report(f"line {node.start_mark.line + 1}: {mistake}")

    def check_keys(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or _SURROGATE.search(key.value):
                self.report_at(key, "a key must be plain text")
            elif _ODD_BLANK.search(key.value):
                self.report_at(key, "a key with an unusual blank, as copied from a web page: type the key again")
            elif key.value in seen:
                self.report_at(key, f"key '{shown(key.value)}' is given twice")
            else:
                seen.add(key.value)

    def construct_plain(self, node: yaml.ScalarNode) -> str | int | float | bool | None:
        return scalar(str(self.construct_scalar(node)))

    def construct_text(self, node: yaml.ScalarNode) -> str | Unset:
        text = str(self.construct_scalar(node))
        filled = self._fill(text, node) if "${" in text else text
        if isinstance(filled, str) and _SURROGATE.search(filled):
            self.report_at(node, "holds what is no text in UTF-8")
        return filled

    def construct_other(self, node: yaml.Node) -> None:
        self.report_at(node, "has a tag that is not known here (text that begins with ! needs quotes)")

    def _fill(self, text: str, node: yaml.Node) -> str | Unset:
        unset: list[str] = []
        found_in: list[str] = []

        def value(match: re.Match[str]) -> str:
            name, default = match[1], match[2]
            if match[0] == "$${":
                return "${"
            if name is None:
                self.report_at(
                    node, "a '${' that is neither ${NAME} nor ${NAME:-default} (write $${ for the characters)"
                )
                return ""
            found = self._look_up(name, node)
            if found:
                found_in.append(name)
            elif (found := default) is None:
                unset.append(name)
            return found or ""

        filled = _VARIABLE.sub(value, text)
        if unset:
            return Unset(tuple(dict.fromkeys(unset)))
        whole = _VARIABLE.fullmatch(text)
        if whole is None or not whole[1]:
            return filled
        value_alone = Filled(filled)
        value_alone.variable = "".join(found_in)
        return value_alone

    def _look_up(self, name: str, node: yaml.Node) -> str | None:
        if folder := self.environ.get("CREDENTIALS_DIRECTORY"):
            try:
                return without_newline(text_of(Path(folder) / name)) or self.environ.get(name)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except (OSError, ValueError):
                self.report_at(node, f"the credential {name} cannot be read")
        return self.environ.get(name)


for _pattern, _name, _first in (
    (_BOOL, "bool", "tTfF"),
    (_INT, "int", "-+0123456789"),
    (_FLOAT, "float", "-+0123456789."),
    (_NULL, "null", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(TAG + _name, re.compile(rf"(?:{_pattern.pattern})\Z"), list(_first))
    _Loader.add_constructor(TAG + _name, _Loader.construct_plain)
_Loader.add_constructor(TAG + "str", _Loader.construct_text)
_Loader.add_constructor(None, _Loader.construct_other)


_IN_OUR_WORDS: Final = (
    (r"found character '\\t'", "a tab: YAML indents with blanks only"),
    (r"found character ('.+') that cannot start any token", r"text that begins with \1 needs quotes"),
    (
        "mapping values are not allowed here",
        "a ':' where there can be no key: the line before lacks a blank after its ':', or the indentation is off",
    ),
    ("could not find expected ':'", "a key without ':' and a blank after it, here or in the line before"),
    ("expected <block end>, but found", "the indentation of this line fits none of the lines above it"),
    (r"found unexpected end of stream", "a quote is opened and not closed"),
    (r"expected ',' or '(.)', but got", r"a ',' or the closing '\1' is missing"),
    (r"expected the node content, but found", "a value is missing here, or a bracket is opened and not closed"),
    (r"expected '<document start>', but", "the indentation of this line fits none of the lines above it"),
    (r"expected a mapping( or list of mappings)? for merging", "'<<' takes what an anchor names, such as *base"),
)
"""PyYAML's messages for the commonest slips, in words for people who do not know its grammar."""


def _what_is_wrong(error: yaml.YAMLError, text: str) -> str:
    """The message for a YAML error, with its line, but without text of the file: an API key may look like an anchor."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position if isinstance(error.position, int) else 0)
        return f"line {line + 1}: a character that YAML does not allow"
    mark, begun = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    mark = mark or begun
    what = getattr(error, "problem", None) or "not valid YAML"
    if isinstance(error, ExpandsTooMuch):
        what = f"anchors that make more than {EXPANDED_LIMIT} values of the file, or one that holds itself"
    elif isinstance(error, yaml.composer.ComposerError):
        what = "an alias without its anchor, or a second document (text that begins with * or & needs quotes)"
    for pattern, words in _IN_OUR_WORDS:
        if (match := re.match(pattern, what)) is not None:
            what = match.expand(words)
            break
    what = re.sub(r"'([^']*)'", lambda m: m[0] if len(m[1]) <= 5 or m[1].startswith("<") else "this", what)
    if mark and begun and begun.line < mark.line and what.endswith(("not closed", "is missing")):
        what += f"; it was opened in line {begun.line + 1}"
    return f"line {mark.line + 1}: {what}" if mark else what


def shown(key: object) -> str:
    """A key for a message, cut at the first character that keys never contain (``api_key:sk-...`` lacks a blank), and
    where it looks like a provider's or a client's key itself."""
    text = str(key)
    if (secret := _KEY_LIKE.match(text)) is not None:
        return f"{secret[1]}..."
    plain = re.match(r"[A-Za-z0-9_./@-]{0,64}", text)
    return text if plain is not None and plain[0] == text != "" else f"{plain[0] if plain else ''}..."


def without_newline(text: str) -> str:
    """`text` without the line ends that editors and ``echo`` append."""
    return text.rstrip("\r\n")
