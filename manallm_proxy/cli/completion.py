"""``completion``: prints a shell's completion script for our commands and their options."""

from __future__ import annotations

import argparse
from typing import Final, Literal

Shell = Literal["bash", "zsh", "fish"]


def completion(shell: Shell, parser: argparse.ArgumentParser) -> int:
    """Prints the script for `shell`: of the commands that `parser` knows, with their options and helps."""
    commands = _commands(parser)
    if shell == "fish":
        print("complete -c manallm-proxy -f")
        for name, (text, options) in commands.items():
            print(f"complete -c manallm-proxy -n __fish_use_subcommand -a {name} -d {_quoted(text)}")
            for option, what, takes_file in options:
                long = f"-n '__fish_seen_subcommand_from {name}' -l {option.removeprefix('--')}"
                print(f"complete -c manallm-proxy {long} -d {_quoted(what)}{' -r -F' if takes_file else ''}")
        return 0
    if shell == "zsh":
        print("#compdef manallm-proxy\nautoload -U +X bashcompinit && bashcompinit")
    cases = "\n".join(
        f"    {name}) words='{' '.join(option for option, _, _ in options)}';;"
        for name, (_, options) in commands.items()
    )
    print(BASH.format(commands=" ".join(commands), cases=cases))
    return 0


def _commands(parser: argparse.ArgumentParser) -> dict[str, tuple[str, list[tuple[str, str, bool]]]]:
    """By name: the command's help, and its options, each with its help and whether it takes a file."""
    found = {}
    for action in parser._actions:  # argparse has no public access to its subparsers
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                options = [
                    (option, each.help or "", each.dest in ("config", "credentials"))
                    for each in command._actions
                    if each.help != argparse.SUPPRESS
                    for option in each.option_strings
                    if option.startswith("--")
                ]
                found[name] = helps.get(name, ""), options
    return found


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


BASH: Final = """\
_manallm_proxy() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words='{commands}'
  if [ "$COMP_CWORD" -gt 1 ]; then
    case "$before" in --config|--credentials) COMPREPLY=($(compgen -f -- "$word")); return;; esac
    case "${{COMP_WORDS[1]}}" in
{cases}
    *) words='';;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -F _manallm_proxy manallm-proxy\
"""
