"""Completion scripts: what a shell offers at a place of the line."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from sdm_ray.cli.app import app
from sdm_ray.cli.completion import completion_script, setting_paths
from sdm_ray.config import SweepSettings, TrialSettings, check_path

BASH = """
source ./script
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _sdm_ray; printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
autoload -U compinit; compinit -D -u; source ./script
compadd() { while [ "$1" != -- ]; do shift; done; shift; print -rl -- $* }
_files() {}
words=("$@"); CURRENT=$#; _sdm_ray | grep -e "^${words[CURRENT]}"
"""
FISH = 'source ./script; complete -C (string join " " -- $argv) | string split -f 1 \\t'
CASES = {
    "commands": ([""], {"sweep", "train", "status", "completion"}, {"--help"}),
    "own options": (["--v"], {"--version", "--verbose"}, {"sweep"}),
    "options": (["train", "--me"], {"--method"}, {"--resume"}),
    "an option's values": (["train", "x.yaml", "--method", ""], {"mlac", "tuned", "ac"}, {"--method", "sweep"}),
    "settings of a trial": (["train", "--set", "train.lea"], {"train.learning_rate="}, {"trial.train.learning_rate="}),
    "settings of a sweep": (["sweep", "--set", "trial.train.lea"], {"trial.train.learning_rate="}, {"mlac"}),
    "arguments": (["reproduce", "paper"], {"paper-bios", "paper-regression"}, {"beat-paper"}),
    "sweeps": (["status", ""], {"demo", "other"}, {"no-sweep", "train"}),
}


@pytest.mark.parametrize(("line", "offered", "withheld"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes(shell: str, line: list[str], offered: set[str], withheld: set[str], tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    for name in ("demo", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "sweep.yaml").touch()
    (tmp_path / "runs" / "no-sweep").mkdir()
    (tmp_path / "script").write_text(completion_script(shell, typer.main.get_command(app)))  # type: ignore[arg-type]
    code = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell]
    given = [program, "-c", code, *(["shell"] if shell != "fish" else []), "sdm-ray", *line]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(given, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    found = set(done.stdout.split())
    assert offered <= found, done.stderr
    assert not withheld & found


@pytest.mark.parametrize("kind", [TrialSettings, SweepSettings])
def test_completed_settings_are_there(kind: type[TrialSettings]) -> None:
    paths = setting_paths(kind)
    assert {path.split(".")[0] for path in paths} == set(kind.model_fields)
    for path in paths:
        check_path(kind, path)
