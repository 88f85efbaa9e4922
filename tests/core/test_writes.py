"""Only `core/files.py` writes: other modules write through it, or to a path that it gives and puts in place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sdm_ray

ROOT = Path(sdm_ray.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "core" / "files.py")

METHODS = {"write_text", "write_bytes", "rename", "fsync", "ftruncate", "truncate", "copyfile", "copy2", "copytree"}
OS_CALLS = {("os", "replace"), ("os", "write"), ("os", "open"), ("shutil", "move"), ("shutil", "copy")}
ALLOWED = {
    "core/output.py": {"open"},  # the null device
    "core/lock.py": {'open "a+"', "truncate"},  # the lock is the open file; what it says is for people
    "sweep/cluster/watchdog.py": {'open "w"'},  # faulthandler writes there when the process hangs
}


def writes(source: str) -> set[str]:
    """Calls that write, rename or sync: `open` with a mode that writes, and the names above."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        owner = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
        if name == "open":
            given = [*node.args, *(word.value for word in node.keywords if word.arg == "mode")]
            modes = [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]
            found |= {f'open "{mode}"' for mode in modes if set(mode) <= set("rwxabt+") and set(mode) & set("wxa+")}
        if (name in METHODS and isinstance(called, ast.Attribute)) or (owner, name) in OS_CALLS:
            found.add(name)
        is_path = owner not in ("dataclasses", "self") and len(node.args) == 1 and not node.keywords
        if name == "replace" and isinstance(called, ast.Attribute) and is_path:  # str.replace takes two
            found.add(name)
    return found


def test_nobody_else_writes() -> None:
    for path in MODULES:
        found = writes(path.read_text(encoding="utf-8"))
        allowed = ALLOWED.get(path.relative_to(ROOT).as_posix(), set())
        assert found <= allowed, f"{path} writes by itself ({found}); use sdm_ray.core.files"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("path.open('ab')", {'open "ab"'}), ("open(path, mode='w')", {'open "w"'}), ("path.open()", set()),
        ("path.write_text(x)", {"write_text"}), ("write_text(path, x)", set()), ("a.replace(b)", {"replace"}),
        ("a.replace('b', 'c')", set()), ("os.fsync(x)", {"fsync"}), ("dataclasses.replace(x)", set()),
        ("os.replace(a, b)", {"replace"}), ("shutil.copytree(a, b)", {"copytree"}),
    ],
)  # fmt: skip
def test_writes_are_found(line: str, found: set[str]) -> None:
    assert writes(line) == found
