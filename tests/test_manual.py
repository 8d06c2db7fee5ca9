"""The man pages: made of the commands and of the shipped files, and what their readers make of them."""

from __future__ import annotations

import os
import re
import subprocess
from typing import get_args

from manallm_proxy.__main__ import parser
from manallm_proxy.cli.manual import COMMANDS, CONFIGURATION, command_page, config_page
from manallm_proxy.config.described import FILES, described
from manallm_proxy.contract.events import Outcome
from tests.cases import every
from tests.command import ROOT
from tests.needs import require

FOLDER = ROOT / "systemd"


def test_they_are_of_today() -> None:
    """`make man` writes them anew."""
    assert (FOLDER / COMMANDS).read_text() == command_page(parser()), "run `make man`"
    assert (FOLDER / CONFIGURATION).read_text() == config_page(), "run `make man`"


def test_each_key_and_each_command_is_in_them() -> None:
    """As a reader sees it."""
    page = config_page().replace("\\-", "-")
    for name in FILES:
        for key in described(name).keys:
            assert key.name in page and key.text.split(" ")[0] in page
    commands = re.findall(r"^    ([a-z-]+)\b", parser().format_help(), re.MULTILINE)
    assert len(commands) > 10
    assert re.findall(r"^\.SS (.*)$", command_page(parser()), re.MULTILINE) == commands


def test_options_that_take_one_of_a_few_words_list_them() -> None:
    """Where the words belong to the proxy that is asked, and so not to the parser."""
    page = command_page(parser()).replace("\\-", "-")
    assert f"only with this outcome ({', '.join(get_args(Outcome))})" in page.replace("\n", " ")


@every([COMMANDS, CONFIGURATION])
def test_no_reader_warns(page: str) -> None:
    """Neither mandoc nor groff, which tell of a slip in the macros and of what they cannot show."""
    mandoc = require("mandoc", "Debian: apt-get install mandoc")
    done = subprocess.run([mandoc, "-T", "lint", FOLDER / page], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    groff = require("groff", "Debian: apt-get install groff-base")
    told = subprocess.run([groff, "-man", "-Tutf8", "-ww", FOLDER / page], capture_output=True, text=True, check=True)
    assert told.stderr == ""
    shown = subprocess.run(
        [mandoc, FOLDER / page], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    assert max(map(len, re.sub(".\b", "", shown.stdout).splitlines())) <= 80
