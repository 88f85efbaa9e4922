"""What a result may depend on besides its settings: code, package versions, hardware."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("sdm-ray", "torch", "transformers", "ray", "optuna", "mlflow", "numpy")


def environment_tags() -> dict[str, str]:
    """Tags of the machine that drives a sweep, under MLflow's own names if there are any."""
    tags = {
        "mlflow.source.name": "sdm-ray",
        "mlflow.source.type": "LOCAL",
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpus": str(os.cpu_count()),
        "gpus": str(torch.cuda.device_count()),
    }
    for package in PACKAGES:
        try:
            tags[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    commit = git_commit(Path(__file__).parent)
    if commit:
        tags["mlflow.source.git.commit"] = commit
    with suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def git_commit(folder: Path) -> str | None:
    """Commit of the checkout that contains `folder`, with `-dirty` if files differ; None outside a checkout."""
    try:
        if not _git(folder, "ls-files", "."):
            return None
        return _git(folder, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, check=True)
    return run.stdout.strip()
