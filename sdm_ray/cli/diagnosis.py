"""Checks of this machine, with advice for what does not work. Nothing here raises or changes anything."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import typer
from rich.markup import escape
from rich.table import Table

from sdm_ray.cli.progress import console, print_json
from sdm_ray.config import RuntimeSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.tracking.place import URI

Level = Literal["ok", "warn", "fail"]

NETWORK_TIMEOUT_SECONDS = 5.0
DEEP_TIMEOUT_SECONDS = 180.0
LITTLE_DISK_BYTES, TOO_LITTLE_DISK_BYTES = 5 * 2**30, 2**29
LITTLE_SHARED_MEMORY_BYTES = 2**28
"""Size of a sweep's local Ray object store."""
_START_RAY = (
    "from sdm_ray.config import ResourceSettings\n"
    "from sdm_ray.sweep.cluster.connection import cluster\n"
    "with cluster(ResourceSettings(ray_address='local')) as fits:\n"
    "    print(f'starts on loopback; {fits} trials of 1 CPU fit at once')\n"
)


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis."""

    name: str
    status: Level
    """`ok`: works. `warn`: some uses do not work. `fail`: sdm-ray does not work here."""
    detail: str


def diagnose(
    cache_dir: Path | None, *, output_dir: Path = Path("runs"), tracking_uri: str | None = None, deep: bool = False
) -> list[Check]:
    """Check everything that a sweep needs.

    Args:
        cache_dir: the cache folder; None is that of the environment.
        output_dir: where sweeps would write.
        tracking_uri: an MLflow server or database to reach; None tries none.
        deep: also import the heavy packages, and start and stop a local Ray, each in its own process.
    """
    checks: list[tuple[str, Callable[[], Check | list[Check]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("cpu", _cpu),
        ("cuda", _cuda),
        ("ray", lambda: _ray(deep)),
        ("mlflow", lambda: _mlflow(tracking_uri, deep)),
        ("hub", _hub),
        ("built-in encoder", _builtin_encoder),
        ("cache folder", lambda: _cache_folder(cache_dir)),
        ("output folder", lambda: _folder("output folder", output_dir, "run from another folder or set output_dir")),
    ]
    with ThreadPoolExecutor(max_workers=4) as pool:
        answers = list(pool.map(lambda item: _guarded(*item), checks))
    return [check for answer in answers for check in answer]


def _guarded(name: str, check: Callable[[], Check | list[Check]]) -> list[Check]:
    try:
        answer = check()
    except BaseException as error:  # a broken package may even exit
        return [Check(name, "fail", f"cannot be checked ({type(error).__name__}: {_one_line(error)})")]
    return answer if isinstance(answer, list) else [answer]


def _python() -> Check:
    found = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("python", "ok", f"{found} at {sys.executable}")
    return Check("python", "fail", f"{found} is not supported; use Python 3.11, 3.12 or 3.13")


def _packages() -> Check:
    from packaging.requirements import Requirement

    found, missing, other = [], [], []
    for text in requires("sdm-ray") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            missing.append(requirement.name)
            continue
        found.append(f"{requirement.name} {installed}")
        if not requirement.specifier.contains(installed, prereleases=True):
            other.append(f"{requirement.name} {installed} (needs {requirement.specifier})")
    if missing:
        return Check("packages", "fail", f"missing: {', '.join(missing)}; install sdm-ray again")
    if other:
        return Check("packages", "warn", f"untested versions: {', '.join(other)}; install sdm-ray again")
    return Check("packages", "ok", ", ".join(found))


def _cpu() -> Check:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total = float((torch.ones(8, 8) @ torch.ones(8, 8)).sum())
    if total != 512:
        return Check("cpu", "fail", f"torch {torch.__version__} computes 512 as {total:g}; install torch again")
    return Check("cpu", "ok", f"{usable} usable cores; trials use one thread each (runtime.num_threads)")


def _cuda() -> Check:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is None:
            return Check("cuda", "ok", "no NVIDIA GPU; trials run on the CPU, which suits small encoders only")
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch cannot use the driver"
        return Check("cuda", "warn", f"an NVIDIA driver is here, but {why}; install a torch build that fits the driver")
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        if float(torch.ones(8, device=f"cuda:{index}").sum()) != 8:
            return Check("cuda", "fail", f"cuda:{index} ({properties.name}) computes wrong sums; do not use it")
        names.append(f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    return Check("cuda", "ok", "; ".join(names))


def _ray(deep: bool) -> list[Check]:
    checks = [_installed("ray", "needed for sweeps; train and attack work without it")]
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < LITTLE_SHARED_MEMORY_BYTES:
        size = shutil.disk_usage(shared).total / 2**20
        checks.append(
            Check(
                "shared memory", "warn", f"/dev/shm has {size:.0f} MiB; Ray is slow on it (containers: --shm-size=1g)"
            )
        )
    if deep and checks[0].status == "ok":
        checks.append(_in_process("ray start", _START_RAY))
    return checks


def _mlflow(uri: str | None, deep: bool) -> list[Check]:
    checks = [_installed("mlflow", "needed for tracking; set tracking.enabled=false to go without")]
    if deep and checks[0].status == "ok":
        checks.append(_in_process("mlflow import", "import mlflow.tracking\nprint('imports')"))
    if uri is not None:
        checks.append(_tracking_server(uri))
    return checks


def _tracking_server(uri: str) -> Check:
    from sdm_ray.core.errors import RunError, UsageError
    from sdm_ray.tracking.address import check_address, masked

    try:
        check_address(uri)
    except (UsageError, RunError) as error:
        return Check("mlflow server", "fail", str(error))
    if not uri.startswith(("http://", "https://")):
        return Check("mlflow server", "ok", f"{masked(uri)} can be connected to")
    code, words = _get(f"{uri.rstrip('/')}/version")
    if code == 200:
        return Check("mlflow server", "ok", f"{masked(uri)} answers, MLflow {words[:20]}")
    if code in (401, 403):
        return Check(
            "mlflow server", "warn", f"{masked(uri)} asks for credentials; set MLFLOW_TRACKING_USERNAME and so on"
        )
    reason = f"status {code}" if code else words
    return Check(
        "mlflow server", "fail", f"{masked(uri)} does not answer as MLflow does ({reason}); correct the address"
    )


def _hub() -> Check:
    from huggingface_hub import constants

    without = "the synthetic data, the built-in encoder and local folders work without it"
    if constants.HF_HUB_OFFLINE:
        return Check("hub", "warn", f"switched off by HF_HUB_OFFLINE; only what is cached can be loaded, {without}")
    code, words = _get(constants.ENDPOINT)
    if code and code < 500:
        return Check("hub", "ok", f"{constants.ENDPOINT} answers")
    reason = f"status {code}" if code else words
    return Check("hub", "warn", f"{constants.ENDPOINT} cannot be reached ({reason}); {without}")


def _builtin_encoder() -> Check:
    from sdm_ray.config import SyntheticWorld
    from sdm_ray.models.builtin import recorded_hash
    from sdm_ray.models.pretrain import SHIPPED_FOLDERS, pretraining_record
    from sdm_ray.models.pretrain_settings import default_settings

    world = SyntheticWorld()
    shipped = SHIPPED_FOLDERS[world.version]
    names = ("config.json", "model.safetensors", "tokenizer.json")
    missing = [name for name in names if not (shipped / name).is_file()]
    if missing:
        return Check("built-in encoder", "fail", f"{shipped} lacks {', '.join(missing)}; install sdm-ray again")
    wanted = pretraining_record(world, default_settings(world))["content_hash"]
    if recorded_hash(shipped) != wanted:
        return Check("built-in encoder", "warn", "made for other settings; it is made anew on first use (minutes)")
    return Check("built-in encoder", "ok", f"content hash {wanted}")


def _cache_folder(folder: Path | None) -> Check:
    try:
        folder = folder or RuntimeSettings().cache_folder()
    except UsageError as error:
        return Check("cache folder", "fail", str(error))
    return _folder("cache folder", folder, "set SDM_RAY_CACHE to another folder")


def _folder(name: str, folder: Path, remedy: str) -> Check:
    """Whether a folder (or its closest existing parent) is writable and has free space."""
    folder = folder.expanduser().absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=nearest, prefix=".sdm-ray-") as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return Check(name, "fail", f"{folder} cannot be written ({error.strerror or error}); {remedy}")
    free = shutil.disk_usage(nearest).free
    message = f"{folder}, {free / 2**30:.1f} GiB free"
    if free < TOO_LITTLE_DISK_BYTES:
        return Check(name, "fail", f"{message}, which is too little; free space or {remedy}")
    if free < LITTLE_DISK_BYTES:
        return Check(name, "warn", f"{message}, enough for small sweeps; {remedy} for larger ones")
    return Check(name, "ok", message)


def _installed(package: str, otherwise: str) -> Check:
    try:
        return Check(package, "ok", version(package))
    except PackageNotFoundError:
        return Check(package, "fail", f"not installed; {otherwise}")


def _in_process(name: str, script: str) -> Check:
    """Run a script in a process; its last output line is the detail."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=DEEP_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Check(name, "fail", f"did not end within {DEEP_TIMEOUT_SECONDS:.0f} s")
    lines = [line for line in (run.stdout if run.returncode == 0 else run.stderr).splitlines() if line.strip()]
    message = lines[-1].strip()[:300] if lines else f"exit code {run.returncode}"
    return Check(name, "ok" if run.returncode == 0 else "fail", message)


def _get(url: str) -> tuple[int, str]:
    """HTTP status and start of the body of a page; status 0 and the reason if there is no answer in time.

    Runs on its own thread because name resolution has no time limit.
    """
    answer: list[tuple[int, str]] = []

    def fetch() -> None:
        try:
            with urllib.request.urlopen(url, timeout=NETWORK_TIMEOUT_SECONDS) as response:
                answer.append((response.status, response.read(100).decode(errors="replace")))
        except urllib.error.HTTPError as error:
            answer.append((error.code, error.reason))
        except Exception as error:  # whatever a broken proxy or address raises
            answer.append((0, _one_line(getattr(error, "reason", error))))

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(NETWORK_TIMEOUT_SECONDS + 1)
    return answer[0] if answer else (0, f"nothing within {NETWORK_TIMEOUT_SECONDS:.0f} s")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:150]


STYLE = {"ok": "green", "warn": "yellow", "fail": "red"}


def run(*, deep: bool, tracking_uri: str | None, as_json: bool = False) -> None:
    """Print every check; exit code 1 when one failed."""
    checks = diagnose(None, deep=deep, tracking_uri=tracking_uri or os.environ.get(URI))
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        print_json({"works": not failed, "checks": [asdict(check) for check in checks]})
    else:
        _print(checks)
    if failed:
        raise typer.Exit(1)


def _print(checks: list[Check]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "status", "detail"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        table.add_row(check.name, f"[{STYLE[check.status]}]{check.status}[/]", escape(check.detail))
    console.print(table)
