"""Imports point down only, and heavy packages are imported in one place each: read from the source with `ast`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import sdm_ray

ROOT = Path(sdm_ray.__file__).parent

ORDER = (
    "core", "config", "data", "models",
    "meta.objectives", "meta.inner", "meta.adversaries", "meta.outer", "meta",
    "attack.space", "attack.families", "attack.report", "attack.engine", "attack", "attack.findings",
    "frontier", "figures", "tracking", "trial",
    "sweep.search", "sweep.cluster", "sweep.state", "sweep.records", "sweep.view",
    "sweep.interrupt", "sweep.tune", "sweep", "reproduce", "cli", "__main__",
)  # fmt: skip
"""Rooms from the ground up: a module belongs to its longest prefix here and imports from its own room and from those
below alone (sdm_ray/README.md)."""

BLIND = {"attack": ("meta",), **dict.fromkeys(("frontier", "figures", "tracking"), ("meta", "attack", "trial"))}
"""What a part of the package must not know, by its first name. A bug in the inner loop could hide in both meta-training
and an attack that imports it."""

ONLY_IN = {"ray": "sweep", "optuna": "sweep", "mlflow": "tracking"}
"""Third-party packages with one home (`cli.diagnosis` asks for versions without importing them)."""

MODULES = sorted(ROOT.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(name: str) -> str | None:
    """The longest prefix of a module's name that is a room."""
    rooms = [room for room in ORDER if name == room or name.startswith(room + ".")]
    return max(rooms, key=len, default=None)


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Absolute names of everything that a module imports outside `if TYPE_CHECKING`; imports are statements."""
    names: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.extend(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr):
                visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return tuple(names)


@pytest.mark.parametrize("room", sorted({dotted(path).split(".")[0] for path in MODULES}))
def test_imports_point_down_and_heavy_packages_have_one_home(room: str) -> None:
    problems = [
        problem for path in MODULES if dotted(path).split(".")[0] == room for problem in misplaced(dotted(path), path)
    ]
    assert not problems, "\n".join(problems)


def misplaced(name: str, path: Path) -> Iterator[str]:
    """What a module imports and must not, in words."""
    home = room_of(name)
    if name and home is None:
        yield f"{name} has no room: add it to ORDER"
    for target in imports(path):
        package = target.split(".")[0]
        if ONLY_IN.get(package, name.split(".")[0]) != name.split(".")[0]:
            yield f"{name} imports {target}"
        if not target.startswith("sdm_ray.") or home is None:
            continue
        other = target.removeprefix("sdm_ray.")
        room = room_of(other)
        if room is None:
            yield f"{name} imports {target}, which has no room"
        elif ORDER.index(room) > ORDER.index(home):
            yield f"{name} ({home}) imports {target} ({room}), which lies above it"
        if other.split(".")[0] in BLIND.get(name.split(".")[0], ()):
            yield f"{name} imports {target}"


def test_core_works_without_ray_optuna_and_mlflow() -> None:
    """With the three packages unimportable, the public API and the trial layer still import."""
    code = """
import sys
for name in ("ray", "optuna", "mlflow"):
    sys.modules[name] = None
import sdm_ray, sdm_ray.trial.run, sdm_ray.frontier.points, sdm_ray.figures.frontier, sdm_ray.models.export
import sdm_ray.cli.diagnosis
for name in sdm_ray.__all__:
    getattr(sdm_ray, name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_import_is_light() -> None:
    """`import sdm_ray` and every command's help import no heavy package."""
    code = """
import contextlib, io, sys
import sdm_ray
heavy = {"torch", "transformers", "datasets", "ray", "optuna", "mlflow", "matplotlib", "scipy", "pyarrow", "pandas"}
assert not (heavy | {"numpy", "pydantic", "typer"}) & set(sys.modules), sorted(sys.modules)
from sdm_ray.cli.app import app, main
commands = [command.name or command.callback.__name__ for command in app.registered_commands]
assert {"sweep", "train", "attack", "doctor"} <= set(commands), commands
for arguments in ([], *([command] for command in commands)):
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    assert "Usage" in shown.getvalue(), arguments
    assert not heavy & set(sys.modules), (arguments, heavy & set(sys.modules))
import sdm_ray.sweep.runner
assert not {"torch", "transformers", "ray", "mlflow"} & set(sys.modules), "a sweep says at once what is wrong"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
