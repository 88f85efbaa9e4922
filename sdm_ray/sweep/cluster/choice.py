"""Which Ray a sweep runs on, and what Ray's job server does to its folders. Reads settings and environment alone."""

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
"""The address that asks for a Ray of one's own, whatever the environment says."""
ADDRESS = "RAY_ADDRESS"
CONNECT_SECONDS = 5.0
"""How long a cluster has to take a connection."""
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable in which Ray's job server hands a job its runtime environment; `ray.init` reads it."""
WORKING_COPIES = ("runtime_resources", "working_dir_files")
"""Folders of a Ray session that hold what `--working-dir` shipped; Ray deletes them once no job uses them."""


@dataclass(frozen=True, kw_only=True)
class ClusterChoice:
    """The Ray of a sweep."""

    address: str | None
    """As `ray.init` takes it; None for one of the sweep's own, on this machine."""
    why: str
    """What decided."""

    @property
    def is_private(self) -> bool:
        """Whether the sweep starts it."""
        return self.address is None

    def __str__(self) -> str:
        if self.address is None:
            return f"starting Ray on this machine ({self.why})"
        return f"connecting to the Ray cluster at {self.address} ({self.why})"


def choose_cluster(resources: ResourceSettings, environ: Mapping[str, str] = os.environ) -> ClusterChoice:
    """The cluster that settings or environment name: `resources.ray_address`, a Ray job's own, `RAY_ADDRESS`.

    Raises:
        UsageError: for an address through which no sweep can run.
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
    """Refuse within seconds what Ray would refuse after a minute: more CPUs than there are, and an address at which
    nobody listens.

    Raises:
        UsageError: for an address through which no sweep can run, or more CPUs than this machine has.
        RunError: where nobody listens.
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
    """Refuse more GPUs than a Ray on this machine would find.

    Raises:
        UsageError: with what a trial needs and what there is.
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
    """The copy of a job's working directory that a path lies in; None where it lies in none."""
    path = path.resolve()
    for folder in (path, *path.parents):
        if tuple(part.name for part in reversed(folder.parents[:2])) == WORKING_COPIES:
            return folder
    return None


def refuse_working_copy(path: Path, name: str, fix: str) -> None:
    """Refuse to put results where Ray deletes them.

    Args:
        path: where results would lie.
        name: of the setting or option that says so.
        fix: what to give in its place.

    Raises:
        UsageError: when it lies in the copy of a job's working directory.
    """
    copy = working_copy(path)
    if copy is not None:
        raise UsageError(
            f"{name} is {str(path)!r}, in Ray's copy of the job's working directory ({copy}), which Ray deletes after "
            f"the job: {fix}"
        )


def check_out(out: Path | None) -> None:
    """Refuse a command's `--out` whose results would be deleted with the job; None is a folder in `runs/`.

    Raises:
        UsageError: when it is so.
    """
    refuse_working_copy(out or Path("runs"), "--out", "--out /a/folder/that/stays")


def check_output_dir(settings: SweepSettings) -> None:
    """Refuse an `output_dir` whose results would be deleted with the job, unless they are copied elsewhere.

    Raises:
        UsageError: when it is so.
    """
    if settings.storage_path is None:
        fix = "--set output_dir=/a/folder/that/stays, or set storage_path to where the sweep's files are copied"
        refuse_working_copy(user_path(settings.output_dir, "output_dir"), "output_dir", fix)
