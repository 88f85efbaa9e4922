"""`sdm-ray completion`: scripts that complete commands, options, their values and the paths of settings.

Each script contains all words, so completing does not start Python; sweeps are looked up in `runs/`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, get_args, get_type_hints

from pydantic import BaseModel

from sdm_ray.config import SweepSettings, TrialSettings
from sdm_ray.config.base import Settings

Shell = Literal["bash", "zsh", "fish"]
NAME = "sdm-ray"
SETTINGS: dict[str, type[Settings]] = {
    "sweep": SweepSettings, "reproduce": SweepSettings, "train": TrialSettings, "attack": TrialSettings,
}  # fmt: skip
"""Settings that `--set` of a command refers to."""
SWEEPS = ("status", "frontier", "best", "register")
"""Commands that take sweeps as arguments."""
_LIST_SWEEPS = 'for f in runs/*/sweep.yaml; do [ -e "$f" ] && f=${f%/sweep.yaml} && echo "${f#runs/}"; done'


@dataclass(frozen=True)
class Command:
    """Options and arguments of a command."""

    name: str
    help: str
    options: Mapping[str, str]
    """Help text by option."""
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Allowed values by option."""
    taking: tuple[str, ...] = ()
    """Other options that take a value, which is completed as a file."""
    arguments: tuple[str, ...] = ()
    """Allowed values of the argument."""


def completion_script(shell: Shell, group: Any) -> str:
    """The completion script for a shell, to be sourced when it starts.

    Args:
        shell: the shell.
        group: the command line, as `typer.main.get_command` gives it.
    """
    commands = [_command(name, command) for name, command in sorted(group.commands.items())]
    top = Command("", "", _options(group))
    writers = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    return writers[shell](top, commands)


def setting_paths(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted paths of all settings that are values, not groups of settings."""
    paths: list[str] = []
    for name, item in kind.model_fields.items():
        inner = item.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            paths += setting_paths(inner, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths


def _command(name: str, command: Any) -> Command:
    allowed = _choices(inspect.unwrap(command.callback))
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    choices = {option.opts[0]: allowed[option.name] for option in options if option.name in allowed}
    plain = (option.opts for option in options if not option.is_flag and option.opts[0] not in choices)
    arguments = (parameter for parameter in command.params if parameter not in options)
    words = tuple(word for parameter in arguments for word in allowed.get(parameter.name, ()))
    taking = tuple(text for texts in plain for text in texts)
    summary = (command.help or "").strip().split("\n")[0]
    return Command(name, summary, _options(command), choices, taking, words)


def _options(command: Any) -> dict[str, str]:
    """Help text by spelling of each option."""
    found = {"--help": "Show this message and exit."}
    for parameter in command.params:
        if parameter.param_type_name == "option":
            found |= dict.fromkeys((*parameter.opts, *parameter.secondary_opts), parameter.help or "")
    return dict(sorted(found.items()))


def _choices(function: Callable[..., Any]) -> dict[str, tuple[str, ...]]:
    """Allowed values by parameter of a command's function, for parameters with a fixed set of them."""
    found: dict[str, tuple[str, ...]] = {}
    for name, hint in get_type_hints(function).items():
        kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and issubclass(kind, Enum)]
        if kinds:
            found[name] = tuple(str(member.value) for member in kinds[0])
    return found


def _paths(command: Command) -> list[str]:
    return setting_paths(SETTINGS[command.name]) if command.name in SETTINGS and "--set" in command.options else []


def _cases(top: Command, commands: Iterable[Command], assign: str) -> tuple[list[str], list[str], list[str]]:
    """Branches of the `case` statements of bash and zsh: options, values after an option, arguments."""
    commands = list(commands)
    options = [f'    "") {assign % " ".join(top.options)} ;;']
    values: list[str] = []
    arguments = [f'    "") {assign % " ".join(command.name for command in commands)} ;;']
    for command in commands:
        options.append(f"    {command.name}) {assign % ' '.join(command.options)} ;;")
        for option, words in command.values.items():
            values.append(f'    "{command.name} {option}") {assign % " ".join(words)} ;;')
        if paths := _paths(command):
            values.append(f'    "{command.name} --set") {assign % " ".join(f"{path}=" for path in paths)}; bare=1 ;;')
        others = [option for option in command.taking if option != "--set"]
        if others:
            values.append("    " + "|".join(f'"{command.name} {option}"' for option in others) + ") files=1 ;;")
        if command.arguments:
            arguments.append(f"    {command.name}) {assign % ' '.join(command.arguments)} ;;")
    arguments.append(f"    {'|'.join(SWEEPS)}) {assign % f'$({_LIST_SWEEPS})'}; files=1 ;;")
    arguments.append("    *) files=1 ;;")
    return options, values, arguments


def _bash(top: Command, commands: list[Command]) -> str:
    options, values, arguments = _cases(top, commands, 'words="%s"')
    lines = [
        f'# bash completion of {NAME}: eval "$({NAME} completion bash)" in ~/.bashrc',
        "_sdm_ray() {",
        '  local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}"',
        '  local command="" words="" bare="" files="" i',
        "  for ((i = 1; i < COMP_CWORD; i++)); do",
        '    case "${COMP_WORDS[i]}" in -*) ;; *) command="${COMP_WORDS[i]}"; break ;; esac',
        "  done",
        "  COMPREPLY=()",
        '  case "$command $prev" in',
        *values,
        "  esac",
        '  if [ -z "$words$files" ]; then case "$cur" in',
        '  -*) case "$command" in',
        *options,
        "  esac ;;",
        '  *) case "$command" in',
        *arguments,
        "  esac ;;",
        "  esac; fi",
        '  COMPREPLY=($(compgen -W "$words" -- "$cur"))',
        '  if [ -n "$bare" ]; then compopt -o nospace 2>/dev/null; fi',
        '  if [ -n "$files" ]; then compopt -o default -o filenames 2>/dev/null; fi',
        "}",
        f"complete -F _sdm_ray {NAME}",
    ]
    return "\n".join(lines) + "\n"


def _zsh(top: Command, commands: list[Command]) -> str:
    options, values, arguments = _cases(top, commands, 'text="%s"')
    lines = [
        f"#compdef {NAME}",
        f'# zsh completion of {NAME}: eval "$({NAME} completion zsh)" in ~/.zshrc, after compinit',
        "_sdm_ray() {",
        '  local cur="${words[CURRENT]}" prev="${words[CURRENT-1]}" command="" text="" bare="" files="" i',
        "  for ((i = 2; i < CURRENT; i++)); do",
        '    case "${words[i]}" in -*) ;; *) command="${words[i]}"; break ;; esac',
        "  done",
        '  case "$command $prev" in',
        *values,
        "  esac",
        '  if [ -z "$text$files" ]; then case "$cur" in',
        '  -*) case "$command" in',
        *options,
        "  esac ;;",
        '  *) case "$command" in',
        *arguments,
        "  esac ;;",
        "  esac; fi",
        "  if [ -n \"$bare\" ]; then compadd -S '' -- ${=text}; else compadd -- ${=text}; fi",
        '  if [ -n "$files" ]; then _files; fi',
        "}",
        f"compdef _sdm_ray {NAME}",
    ]
    return "\n".join(lines).replace("for f in runs/*/sweep.yaml", "for f in runs/*/sweep.yaml(N)") + "\n"


def _fish(top: Command, commands: list[Command]) -> str:
    lines = [f"# fish completion of {NAME}: {NAME} completion fish > ~/.config/fish/completions/{NAME}.fish"]
    begin = f"complete -c {NAME}"
    for option, text in top.options.items():
        lines.append(f"{begin} -n __fish_use_subcommand {_flag(option)} -d {_quoted(text)}")
    for command in commands:
        lines.append(f"{begin} -n __fish_use_subcommand -x -a {command.name} -d {_quoted(command.help)}")
        condition = f"{begin} -n '__fish_seen_subcommand_from {command.name}'"
        for option, text in command.options.items():
            takes = ""
            if option in command.values:
                takes = f" -x -a {_quoted(' '.join(command.values[option]))}"
            elif option == "--set" and _paths(command):
                takes = f" -x -a {_quoted(' '.join(f'{path}=' for path in _paths(command)))}"
            elif option in command.taking:
                takes = " -r"
            lines.append(f"{condition} {_flag(option)}{takes} -d {_quoted(text)}")
        if command.arguments:
            lines.append(f"{condition} -x -a {_quoted(' '.join(command.arguments))}")
        if command.name in SWEEPS:
            lines.append(f"{condition} -a '(for f in runs/*/sweep.yaml; basename (dirname $f); end)'")
    return "\n".join(lines) + "\n"


def _flag(option: str) -> str:
    return f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"


def _quoted(text: str) -> str:
    """Text for fish, within single quotes."""
    return "'" + " ".join(text.split()).replace("\\", "\\\\").replace("'", "\\'") + "'"
