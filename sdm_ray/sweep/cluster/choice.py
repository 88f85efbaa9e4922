"""Selects the Ray cluster of a sweep, and checks for folders that Ray's job server deletes. Does not import Ray."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdm_ray.config import ResourceSettings, SweepSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import user_path

LOCAL = "local"
"""Address that starts a private Ray, regardless of environment variables."""
ADDRESS = "RAY_ADDRESS"
CONNECT_SECONDS = 5.0
"""Timeout of a test connection to a cluster."""
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable in which Ray's job server passes a job its runtime environment; `ray.init` reads it."""
WORKING_COPIES = ("runtime_resources", "working_dir_files")
"""Folders of a Ray session that hold the uploads of `--working-dir`; Ray deletes them when no job uses them."""


@dataclass(frozen=True, kw_only=True)
class ClusterChoice:
    """The Ray cluster of a sweep."""

    address: str | None
    """Address as in `ray.init`; None for a private Ray on this machine."""
    why: str
    """Reason for the choice, for messages."""

    @property
    def is_private(self) -> bool:
        """Whether the sweep starts Ray itself."""
        return self.address is None

    def __str__(self) -> str:
        if self.address is None:
            return f"starting Ray on this machine ({self.why})"
        return f"connecting to the Ray cluster at {self.address} ({self.why})"


def choose_cluster(resources: ResourceSettings, environ: Mapping[str, str] = os.environ) -> ClusterChoice:
    """Choose the cluster. In order of precedence: `resources.ray_address`, the cluster of the Ray job, `RAY_ADDRESS`.

    Raises:
        UsageError: for an address of Ray Client or of Ray's job server, where no sweep can run.
    """
    setting, variable = resources.ray_address, environ.get(ADDRESS)
    if setting:
        address, name = setting, "resources.ray_address"
        why = f"{name} is {LOCAL}" if setting == LOCAL else name
    elif JOB in environ:
        address, name, why = variable or "auto", ADDRESS, "this is one of its jobs"
    elif variable:
        address, name = variable, ADDRESS
        why = f"{name} is {LOCAL}" if variable == LOCAL else name
    else:
        return ClusterChoice(address=None, why=f"no resources.ray_address, no {ADDRESS}")
    if "://" in address:
        kind = "Ray's job server" if address.startswith("http") else "Ray Client"
        raise UsageError(
            f"{name} is {address!r}, an address of {kind}, through which no sweep can run: submit it (ray job submit "
            "--working-dir . -- sdm-ray sweep FILE), or set resources.ray_address to the cluster's HOST:PORT, to auto "
            f"on one of its nodes, or to {LOCAL} for a Ray on this machine"
        )
    return ClusterChoice(address=None if address == LOCAL else address, why=why)


def check_cluster(resources: ResourceSettings, environ: Mapping[str, str] = os.environ) -> None:
    """Check the cluster's address and the CPUs of this machine, within seconds; Ray would fail after a minute.

    Raises:
        UsageError: for an address where no sweep can run, or if a trial needs more CPUs than this machine has.
        RunError: if nothing accepts connections at the address.
    """
    choice = choose_cluster(resources, environ)
    if choice.address is None:
        ray, there = sys.modules.get("ray"), os.cpu_count() or 1
        if (ray is None or not ray.is_initialized()) and resources.cpus_per_trial > there:
            raise UsageError(
                f"resources.cpus_per_trial is {resources.cpus_per_trial:g} but this machine has {there} CPUs in all, "
                "so no trial would ever start; lower it or use a larger cluster"
            )
        return
    if choice.address == "auto":
        return
    host, separator, port = choice.address.rpartition(":")
    if not (separator and host and port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(
            f"the Ray cluster's address is {choice.address!r} ({choice.why}), and must be HOST:PORT, auto or {LOCAL}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"no Ray cluster answers at {choice.address!r} ({choice.why}): {reason}; "
            f"start it, correct the address, or set resources.ray_address={LOCAL} for a Ray on this machine"
        ) from None


def check_gpus(resources: ResourceSettings) -> None:
    """Check that this machine has the GPUs that a trial needs.

    Raises:
        UsageError: if it has fewer.
    """
    if not resources.gpus_per_trial:
        return
    import torch

    there = torch.cuda.device_count()
    if resources.gpus_per_trial > there:
        raise UsageError(
            f"resources.gpus_per_trial is {resources.gpus_per_trial:g} but this machine has {there} GPUs that torch "
            "can use, so no trial would ever start; lower it or use a larger cluster"
        )


def working_copy(path: Path) -> Path | None:
    """Ray's copy of a job's working directory that contains a path; None if the path is in no such copy."""
    path = path.resolve()
    for folder in (path, *path.parents):
        if tuple(part.name for part in reversed(folder.parents[:2])) == WORKING_COPIES:
            return folder
    return None


def refuse_working_copy(path: Path, name: str, fix: str) -> None:
    """Reject a path for results that Ray deletes after the job.

    Args:
        path: path for the results.
        name: setting or option that set the path, for the message.
        fix: suggested alternative, for the message.

    Raises:
        UsageError: if the path is in Ray's copy of a job's working directory.
    """
    copy = working_copy(path)
    if copy is not None:
        raise UsageError(
            f"{name} is {str(path)!r}, in Ray's copy of the job's working directory ({copy}), which Ray deletes after "
            f"the job: {fix}"
        )


def check_out(out: Path | None) -> None:
    """Reject a command's `--out` if Ray would delete the results after the job; None is a folder in `runs/`.

    Raises:
        UsageError: if it would.
    """
    refuse_working_copy(out or Path("runs"), "--out", "--out /a/folder/that/stays")


def check_output_dir(settings: SweepSettings) -> None:
    """Reject an `output_dir` that Ray would delete after the job, unless results are copied to `storage_path`.

    Raises:
        UsageError: if it would.
    """
    if settings.storage_path is None:
        fix = "--set output_dir=/a/folder/that/stays, or set storage_path to where the sweep's files are copied"
        refuse_working_copy(user_path(settings.output_dir, "output_dir"), "output_dir", fix)
