"""The README keeps its promises: it names every file, its commands exist, and CI runs its test command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from sdm_ray.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = ("sdm_ray/models/builtin/",)
"""Described as a whole."""
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [match.group(0) for match in re.finditer(r"sdm-ray (?!.*#.*sdm-ray)[^\n#&>]*", BLOCKS)]


def test_every_file_has_its_line() -> None:
    files = [path for folder in ("sdm_ray", "sweeps", "tests", "infra") for path in (ROOT / folder).rglob("*")]
    names = [path.relative_to(ROOT).as_posix() for path in files if path.is_file()]
    wanted = [name for name in names if "__pycache__" not in name and not name.startswith(FOLDERS)]
    missing = [
        name
        for name in wanted
        if f"`{name}`" not in README and not ((ROOT / name).suffix == ".py" and not (ROOT / name).read_text().strip())
    ]
    assert not missing
    for name in re.findall(r"^- `([^`]+)`: ", README, re.MULTILINE):
        assert (ROOT / name).exists(), f"the README describes {name}, which is not there"


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
