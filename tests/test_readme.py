"""The README keeps its promises: its commands exist, and CI runs its test command."""

from __future__ import annotations

import re
import shlex

import pytest
import typer.main

from sdm_ray.cli.app import app
from tests import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [match.group(0) for match in re.finditer(r"sdm-ray (?!.*#.*sdm-ray)[^\n#&>]*", BLOCKS)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_the_command_line_takes(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    group = typer.main.get_command(app)
    assert name in group.commands  # type: ignore[attr-defined]
    group.commands[name].make_context(name, arguments, resilient_parsing=False)  # type: ignore[attr-defined]


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 8


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = next(line for line in BLOCKS.splitlines() if "pytest" in line)
    assert command in (ROOT / ".ci" / "run").read_text()
