"""``completion``: prints a shell's completion script for our commands and their options."""

from __future__ import annotations

import argparse
from typing import Final, Literal

from manallm_proxy.contract.records import frozen

Shell = Literal["bash", "zsh", "fish"]


@frozen
class Option:
    """An option of a command; ``name`` empty: the command's own argument. ``choices``: the values that it takes."""

    name: str
    help: str
    choices: tuple[str, ...] = ()
    takes_file: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        return (self.name,) if self.name else self.choices


def completion(shell: Shell, parser: argparse.ArgumentParser) -> int:
    """Prints the script for `shell`: of the commands that `parser` knows, with their options, values and helps."""
    commands = _commands(parser)
    if shell == "fish":
        print("complete -c manallm-proxy -f")
        for name, (text, options) in commands.items():
            print(f"complete -c manallm-proxy -n __fish_use_subcommand -a {name} -d {_quoted(text)}")
            for option in options:
                print(f"complete -c manallm-proxy -n '__fish_seen_subcommand_from {name}' {_fish(option)}")
        return 0
    if shell == "zsh":
        print("#compdef manallm-proxy\nautoload -U +X bashcompinit && bashcompinit")
    cases = "\n".join(
        f"    {name}) words='{' '.join(word for each in options for word in each.words)}';;"
        for name, (_, options) in commands.items()
    )
    values = {each.name: each.choices for _, options in commands.values() for each in options if each.choices}
    chosen = "\n".join(
        f"    {name}) COMPREPLY=($(compgen -W '{' '.join(choices)}' -- \"$word\")); return;;"
        for name, choices in values.items()
        if name
    )
    print(BASH.format(commands=" ".join(commands), cases=cases, chosen=chosen))
    return 0


def _commands(parser: argparse.ArgumentParser) -> dict[str, tuple[str, list[Option]]]:
    """By name: the command's help, and what it takes: first the values of its own argument, then its options."""
    found = {}
    for action in parser._actions:  # argparse has no public access to its subparsers
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                options = [option for each in command._actions for option in _options(each)]
                found[name] = helps.get(name, ""), sorted(options, key=lambda option: bool(option.name))
    return found


def _options(action: argparse.Action) -> list[Option]:
    choices = tuple(map(str, action.choices or ()))
    if action.help == argparse.SUPPRESS:
        return []
    if not action.option_strings:
        return [Option("", "", choices)] if choices else []
    takes_file = action.dest in ("config", "credentials")
    long = [each for each in action.option_strings if each.startswith("--")]
    what = (action.help or "").replace("%(default)s", str(action.default))
    return [Option(each, what, choices, takes_file) for each in long]


def _fish(option: Option) -> str:
    if not option.name:
        return f"-a {_quoted(' '.join(option.choices))}"
    values = f" -x -a {_quoted(' '.join(option.choices))}" if option.choices else " -r -F" if option.takes_file else ""
    return f"-l {option.name.removeprefix('--')} -d {_quoted(option.help)}{values}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


BASH: Final = """\
_manallm_proxy() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words='{commands}'
  if [ "$COMP_CWORD" -gt 1 ]; then
    case "$before" in
    --config|--credentials) COMPREPLY=($(compgen -f -- "$word")); return;;
{chosen}
    esac
    case "${{COMP_WORDS[1]}}" in
{cases}
    *) words='';;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -F _manallm_proxy manallm-proxy\
"""
