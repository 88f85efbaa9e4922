"""Imports point down only, and heavy packages are imported in one place each: read from the source with `ast`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sdm_ray

ROOT = Path(sdm_ray.__file__).parent

LAYERS = {
    "core": 0,
    "figures": 2,
    "models.export": 2,
    "models.model_card": 2,
    "errors": 0,
    "files": 0,
    "lock": 0,
    "shelf": 0,
    "types": 0,
    "progress": 0,
    "config": 0,
    "data": 1,
    "models": 1,
    "meta": 1,
    "meta.trainer": 2,
    "attack": 2,
    "tracking": 2,
    "frontier": 2,
    "report": 2,
    "training_report": 2,
    "attack_report": 2,
    "plotting": 2,
    "page": 2,
    "model_card": 2,
    "reuse": 2,
    "export": 2,
    "doctor": 2,
    "evaluate": 3,
    "assess": 3,
    "final": 3,
    "rungs": 3,
    "probe": 3,
    "trial": 3,
    "sweep": 4,
    "reproduce": 5,
    "cli": 5,
    "__main__": 5,
}
"""The layer of a module is that of its longest prefix here (README, "How it is built")."""

SIDE = {
    "tracking", "frontier", "report", "training_report", "attack_report", "plotting", "page", "model_card", "reuse",
    "export", "doctor", "figures", "models.export", "models.model_card",
}  # fmt: skip
"""Side modules of layer 2: they know neither meta-training nor attacks."""

ONLY_IN = {"ray": "sweep", "optuna": "sweep", "mlflow": "tracking"}
"""Third-party packages with one home (`doctor` asks for versions without importing them)."""

MODULES = sorted(ROOT.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def prefix_in(name: str, table: dict[str, int]) -> str | None:
    matches = [key for key in table if name == key or name.startswith(key + ".")]
    return max(matches, key=len, default=None)


def imports(path: Path, *, top_level_only: bool = False) -> list[str]:
    """Absolute names of everything that a module imports outside `if TYPE_CHECKING`."""
    names: list[str] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import) and not (top_level_only and inside):
            names.extend(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and not (top_level_only and inside):
            assert node.level == 0, f"{path}: relative import"
            names.extend(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return names


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_down(path: Path) -> None:
    name = dotted(path)
    if name == "":
        return
    home = prefix_in(name, LAYERS)
    assert home is not None, f"{name} has no layer: add it to LAYERS"
    for target in imports(path):
        if not target.startswith("sdm_ray."):
            continue
        other = target.removeprefix("sdm_ray.")
        key = prefix_in(other, LAYERS)
        assert key is not None, f"{name} imports {target}, which has no layer"
        assert LAYERS[key] <= LAYERS[home], f"{name} (layer {LAYERS[home]}) imports {target} (layer {LAYERS[key]})"
        if home == "attack":
            assert not key.startswith("meta"), f"{name} imports {target}: a bug in the inner loop could hide in both"
        if home in SIDE:
            assert not key.startswith(("meta", "attack")), f"side module {name} imports {target}"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_heavy_packages_have_one_home(path: Path) -> None:
    for target in imports(path):
        package = target.split(".")[0]
        if package in ONLY_IN:
            assert dotted(path).split(".")[0] == ONLY_IN[package], f"{dotted(path)} imports {target}"


def test_core_works_without_ray_optuna_and_mlflow() -> None:
    """With the three packages unimportable, the public API and the trial layer still import."""
    code = """
import sys
for name in ("ray", "optuna", "mlflow"):
    sys.modules[name] = None
import sdm_ray, sdm_ray.trial, sdm_ray.frontier.points, sdm_ray.figures.frontier, sdm_ray.models.export
import sdm_ray.cli.diagnosis
for name in sdm_ray.__all__:
    getattr(sdm_ray, name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_import_is_light() -> None:
    """`import sdm_ray` and the command line's help load neither torch nor the three heavy packages."""
    code = """
import sys, sdm_ray, sdm_ray.cli
loaded = {"torch", "transformers", "datasets", "ray", "optuna", "mlflow", "matplotlib"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
