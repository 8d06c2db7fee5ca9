"""Generates the man pages: ``manallm-proxy(1)`` from the commands' help texts, ``manallm-proxy.yaml(5)`` from the
comments of the shipped configuration files. `make man` writes them into ``systemd/``.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from manallm_proxy import __version__
from manallm_proxy.config.described import FILES, Description, described
from manallm_proxy.config.load import PLACES

COMMANDS: Final = "manallm-proxy.1"
CONFIGURATION: Final = "manallm-proxy.yaml.5"
_DATE: Final = "2026-11-28"
"""Fixed, so that the same sources always give the same page."""
_WIDTH: Final = 78
_VARIABLES: Final = {
    "MANALLM_CONFIG": "the configuration, where --config is not given.",
    "MANALLM_API_KEY": "the client key for the commands that ask a running proxy.",
    "OLLAMA_URL, OLLAMA_HOST": "where Ollama is, for the quickstart and init.",
    "OPENROUTER_API_KEY, GROQ_API_KEY, TOGETHER_API_KEY, GOOGLE_API_KEY": "keys of the providers that ship.",
    "CREDENTIALS_DIRECTORY": "a folder with such keys as files (systemd).",
    "NO_COLOR": "no colours.",
}


def command_page(parser: argparse.ArgumentParser) -> str:
    """``manallm-proxy(1)``. `parser` knows all commands."""
    [commands] = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    helps = {choice.dest: choice.help or "" for choice in commands._choices_actions}
    lines = [
        *_head("MANALLM-PROXY", 1, "manallm-proxy", "one OpenAI-shaped server in front of all your models"),
        *(".SH SYNOPSIS", ".B manallm-proxy", r".I COMMAND", "[options]", ".SH DESCRIPTION"),
        _text(
            "Clients ask for a class of model, such as mana/fast-text; the proxy asks the first provider of that class "
            "that can answer. Without any configuration it serves the built-in quickstart with the model servers that "
            "answer on this machine. SIGTERM, SIGINT or a closed terminal stops it, SIGHUP reads the files again."
        ),
        ".SH COMMANDS",
    ]
    for name, command in commands.choices.items():
        lines += [f".SS {name}", _sentence(helps[name])]
        for action in command._actions:
            if action.dest not in ("help", "version"):
                lines += [".TP", _named(action), _text(_help(command, action))]
    lines += [".SH ENVIRONMENT"]
    for names, what in _VARIABLES.items():
        lines += [".TP", f".B {_text(names)}", _text(what)]
    lines += [
        ".SH FILES",
        _text(f"{', '.join(PLACES)} are looked for in this order, where neither --config nor"),
        "MANALLM_CONFIG names one.",
    ]
    lines += [".SH EXIT STATUS", "0 fine, 1 failed at work, 2 usage, 78 bad configuration, 130 ended by Ctrl-C."]
    return "\n".join([*lines, ".SH SEE ALSO", ".BR manallm\\-proxy.yaml (5)", ""])


def config_page() -> str:
    """``manallm-proxy.yaml(5)``."""
    lines = [
        *_head("MANALLM-PROXY.YAML", 5, "manallm-proxy.yaml", "the configuration of manallm-proxy"),
        *(
            ".SH SYNOPSIS",
            f".I {_text(PLACES[-1])}",
            ".br",
            f".I {_text(PLACES[-1].replace(*FILES))}",
            ".SH DESCRIPTION",
        ),
    ]
    for name in FILES:
        file = described(name)
        if name != FILES[0]:
            lines.append(f".SH {name.upper()}")
        for number, paragraph in enumerate(file.head):
            if not re.search(r"  |:$", paragraph):  # a table, or the beginning of one
                lines += [*([".PP"] if number else []), _text(paragraph)]
        if name == FILES[0]:
            lines.append(f".SH {name.upper()}")
        for key in _in_order(file.keys):
            if len(key.place) == 1:
                lines.append(f".SS {_text(key.name)}")
                lines += [_shown(key)] if key.value else []
            else:
                lines += [".TP", rf"\fB{_text(key.name)}\fR{': ' + _text(key.value) if key.value else ''}"]
            lines.append(_sentence(key.text))
    lines += [
        ".SH FILES",
        _text(f"{PLACES[-1]}, and the aliases beside it. All mistakes at once:"),
        ".B manallm\\-proxy check",
    ]
    return "\n".join([*lines, ".SH SEE ALSO", ".BR manallm\\-proxy (1)", ""])


def write(parser: argparse.ArgumentParser, folder: Path = Path("systemd")) -> None:
    """Writes both pages into `folder`."""
    (folder / COMMANDS).write_text(command_page(parser))
    (folder / CONFIGURATION).write_text(config_page())


def _head(title: str, section: int, name: str, what: str) -> Iterator[str]:
    yield r".\" Made by `make man`; change its sources."
    yield f'.TH {title} {section} "{_DATE}" "manallm\\-proxy {__version__}"'
    yield ".SH NAME"
    yield rf"{_text(name)} \- {_text(what)}"


def _in_order(keys: tuple[Description, ...]) -> list[Description]:
    """In file order, but each section before its keys, including those in the comment above it."""
    places = {key.place[0]: n for n, key in reversed(list(enumerate(keys)))}
    return sorted(keys, key=lambda key: (places[key.place[0]], len(key.place) > 1))


def _shown(key: Description) -> str:
    return f"{_text(key.name)}: {_text(key.value)}\n.br"


def _named(action: argparse.Action) -> str:
    """``--port PORT``, ``-m, --model MODEL``, ``TEXT``."""
    names = ", ".join(rf"\fB{_text(option)}\fR" for option in action.option_strings)
    value = action.metavar or ("|".join(action.choices) if action.choices else action.dest.upper())
    return names if action.nargs == 0 else " ".join(filter(None, [names, rf"\fI{_text(str(value))}\fR"]))


def _help(command: argparse.ArgumentParser, action: argparse.Action) -> str:
    return (action.help or "") % {**vars(action), "prog": command.prog}


def _sentence(text: str) -> str:
    text = _text(text).removesuffix(":")
    return text if text.endswith((".", "?")) else f"{text}."


def _text(text: str) -> str:
    """`text` escaped for roff, with a line break after each sentence and at `_WIDTH`."""
    text = text.strip().replace("\\", r"\e").replace("-", r"\-")
    lines = []
    for sentence in re.split(r"(?<=[a-z)`][.;?]) ", text):
        lines += textwrap.wrap(sentence, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(rf"\&{line}" if line[:1] in (".", "'") else line for line in lines)
