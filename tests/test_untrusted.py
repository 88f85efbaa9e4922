"""What comes from others runs no code: nothing is unpickled, and servers of ours are heard on this machine alone."""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import socket
from pathlib import Path

import pytest
import yaml

from sdm_ray.core.result import TrialResult
from sdm_ray.sweep import SilentView, run_sweep
from sdm_ray.sweep.state.snapshot import Snapshot
from tests.fakes import sweep as sweep_fakes
from tests.test_layers import MODULES, dotted, imports

PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LOADERS = {
    ("torch", "load"), ("np", "load"), ("numpy", "load"), ("pd", "read_pickle"), ("yaml", "load"),
    ("yaml", "unsafe_load"),
}  # fmt: skip
EVALUATES = {"eval", "exec", "compile", "__import__"}
FRONT_DOORS = ("attack", "models", "core", "config", "data", "frontier", "tracking", "trial")
"""Rooms that read files of others."""


@functools.cache
def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def unsafe(call: ast.Call) -> str | None:
    """What a call may run that lies in a file; None where that is nothing."""
    function = call.func
    if isinstance(function, ast.Name) and function.id in EVALUATES:
        return function.id
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return None
    name = (function.value.id, function.attr)
    words = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name not in LOADERS or (name == ("torch", "load") and words.get("weights_only") == "True"):
        return None
    if name[1] == "load" and name[0] in ("np", "numpy") and words.get("allow_pickle", "False") == "False":
        return None
    if name == ("yaml", "load") and words.get("Loader") == "Loader":
        return None  # a class of ours, below SafeLoader
    return ".".join(name)


def reached(starts: tuple[str, ...]) -> set[str]:
    """Modules of ours that modules below these rooms import, and so on."""
    known = {dotted(path): path for path in MODULES}
    waiting = [name for name in known if name.split(".")[0] in starts]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for target in imports(known[name]):
            parts = target.removeprefix("sdm_ray.").split(".") if target.startswith("sdm_ray.") else []
            waiting += [".".join(parts[:end]) for end in (len(parts), len(parts) - 1) if ".".join(parts[:end]) in known]
    return found


def test_no_file_is_unpickled_or_evaluated() -> None:
    for path in MODULES:
        assert {unsafe(call) for call in calls(path)} <= {None}, path
        assert not PICKLES & {target.split(".")[0] for target in imports(path)}, path


def test_what_reads_models_of_others_reaches_no_pickle() -> None:
    known = {dotted(path): path for path in MODULES}
    found = reached(("attack", "models"))
    assert {"attack.protocol", "models.export", "core.files"} <= found
    for name in found:
        assert not PICKLES & {target.split(".")[0] for target in imports(known[name])}, name


def test_models_of_others_bring_no_code() -> None:
    """Hugging Face can run a repository's own Python, and unpickle what is no safetensors."""
    for path, call in ((module, call) for module in MODULES for call in calls(module)):
        for word in call.keywords:
            if word.arg in ("trust_remote_code", "allow_pickle"):
                assert ast.unparse(word.value) == "False", path
            if word.arg in ("use_safetensors", "weights_only"):
                assert ast.unparse(word.value) == "True", path


def test_no_server_of_ours_listens_elsewhere() -> None:
    assert not [path for path in MODULES if "0.0.0.0" in path.read_text(encoding="utf-8")]
    for path, call in ((module, call) for module in MODULES for call in calls(module)):
        for word in call.keywords:
            if word.arg in ("dashboard_host", "host") and isinstance(word.value, ast.Constant):
                assert word.value.value in ("127.0.0.1", "localhost"), path


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("torch.load(path)", "torch.load"), ("torch.load(path, weights_only=False)", "torch.load"),
        ("torch.load(path, weights_only=True)", None), ("eval(x)", "eval"),
        ("yaml.load(x, Loader=yaml.Loader)", "yaml.load"), ("yaml.load(x, Loader=Loader)", None),
        ("np.load(x, allow_pickle=True)", "np.load"), ("np.load(x)", None), ("model.eval()", None),
    ],
)  # fmt: skip
def test_unsafe_calls_are_found(line: str, found: str | None) -> None:
    (call,) = [node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call)][:1]
    assert unsafe(call) == found


def test_the_loader_of_settings_makes_plain_values_only() -> None:
    from sdm_ray.config import documents

    assert issubclass(documents.Loader, yaml.SafeLoader)


def listening(pids: set[int]) -> set[str]:
    """Addresses (hexadecimal, as the kernel writes them) on which processes take connections."""
    inodes = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes.add(str(file.readlink()))
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in inodes}


def ours() -> set[int]:
    """This process and all below it, and the daemons of the Ray that it started, by its folder."""
    import ray

    session = ray._private.worker._global_node.get_session_dir_path()
    parents, found = {}, {os.getpid()}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if session.encode() in (path / "cmdline").read_bytes():
                found.add(int(path.name))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def test_a_listener_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert listening({os.getpid()}) >= {"0100007F"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks the kernel of Linux")
def test_while_a_sweep_runs_every_listener_is_on_loopback(ray_cluster: None, tmp_path: Path) -> None:
    found: set[str] = set()

    class Listening(SilentView):
        def finished(self, result: TrialResult, snapshot: Snapshot) -> None:
            found.update(listening(ours()))

    settings = sweep_fakes.settings(tmp_path, search__num_trials=1, references="[tuned]", tracking__enabled=True)
    run_sweep(settings, trial_function="tests.fakes.sweep:smooth", view=Listening())
    assert found, "no listener of Ray was seen"
    assert found <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
