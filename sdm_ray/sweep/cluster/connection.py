"""Connects a sweep to Ray: a private local cluster on loopback, a cluster by address, or an existing connection."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sdm_ray.config import ResourceSettings, digest
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.sweep.cluster.choice import ADDRESS, JOB, ClusterChoice, choose_cluster
from sdm_ray.sweep.cluster.watch import FOLDER, abandon_ray, cluster_probe

OBJECT_STORE_BYTES = 256 * 2**20
"""Size of a local cluster's object store; small, because trials send only reports."""

ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # makes a local cluster bind to 127.0.0.1 only
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # matches all logs, as the views report dead workers themselves
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in settings refer to the folder in which the sweep was started
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output ignores `verbose=0`
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "60",  # Tune's checkpoints are not used: the sweep resumes from its own ledger
}

FREE_PORTS = {"AUTOSCALER_METRIC_PORT": "0", "DASHBOARD_METRIC_PORT": "0"}
"""Makes a local cluster choose free ports where Ray's defaults are fixed; see also `free_agent_port`."""


@contextmanager
def cluster(
    resources: ResourceSettings, *, owner: Path | None = None, announce: Callable[[str], None] = lambda text: None
) -> Iterator[int]:
    """Connect to Ray, or start it, for the duration of the block; yields the number of trials that fit at once.

    If this process is already connected to Ray, that connection is used and left open. Otherwise `choose_cluster`
    selects the cluster.

    Args:
        resources: CPUs and GPUs of a trial, and the address of the cluster.
        owner: locked folder of the sweep. It determines the path of a local cluster's temporary folder, so that the
            next driver removes the files of one that was killed or whose Ray did not start.
        announce: called with the chosen cluster and the reason, before the connection is made.

    Raises:
        RunError: if Ray does not start or does not answer.
        UsageError: if the cluster is too small for a single trial, or for an address where no sweep can run.
    """
    choice = choose_cluster(resources)
    with ray_environment(local=choice.is_private):
        import ray

        if ray.is_initialized():
            yield num_fitting(resources, ray.cluster_resources())
            return
        announce(str(choice))
        folder = _make_folder(owner) if choice.is_private else None
        try:
            _connect(choice, folder)
        except BaseException:  # the folder is kept for its logs
            ray.shutdown()
            raise
        lost = cluster_probe()
        try:
            yield num_fitting(resources, ray.cluster_resources())
        finally:
            if lost() is None:
                ray.shutdown()
            else:
                abandon_ray()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def num_fitting(resources: ResourceSettings, available: dict[str, float]) -> int:
    """Number of trials that run at once.

    Raises:
        UsageError: if not even one fits.
    """
    fits = math.inf
    for kind, setting, needed in (
        ("CPU", "cpus_per_trial", resources.cpus_per_trial),
        ("GPU", "gpus_per_trial", resources.gpus_per_trial),
    ):
        there = available.get(kind, 0.0)
        if needed > there:
            raise UsageError(
                f"resources.{setting} is {needed:g} but the cluster has {there:g} {kind}s in all, so no trial would "
                "ever start; lower it or use a larger cluster"
            )
        if needed:
            fits = min(fits, math.floor(there / needed + 1e-9))
    limit = resources.max_concurrent_trials
    return max(1, int(fits if limit is None else min(fits, limit)))


@contextmanager
def quiet_logs(path: Path) -> Iterator[None]:
    """Redirect the logs of Ray, Optuna and Alembic, and Python's warnings, from the terminal to a file."""
    import optuna  # noqa: F401  (both set up their loggers when they are imported)
    import ray  # noqa: F401

    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before: list[tuple[logging.Logger, list[logging.Handler], bool, int]] = []
    for name in ("ray", "optuna", "alembic", "py.warnings"):
        logger = logging.getLogger(name)
        before.append((logger, logger.handlers[:], logger.propagate, logger.level))
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "ray" else logging.WARNING)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, handlers, propagate, level in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        handler.close()


def _connect(choice: ClusterChoice, folder: str | None) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.INFO}
    if folder is None:
        options |= {"address": choice.address, "runtime_env": {"env_vars": _worker_environment()}}
    else:
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": folder,
        }
    try:
        with free_agent_port(), own_session():
            ray.init(**options)
    except Exception as error:
        raise RunError(not_connected(choice, folder, error)) from error


def not_connected(choice: ClusterChoice, folder: str | None, error: BaseException) -> str:
    """Error message for a failed connection, with the fix."""
    message = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    if folder is None:
        return (
            f"no Ray cluster answers at {choice.address!r} ({choice.why}): {message}; correct the address, or set "
            "resources.ray_address=local for a Ray on this machine"
        )
    logs = f"Ray's logs are in {folder}/session_latest/logs"
    if isinstance(error, TimeoutError) or any(word in message.lower() for word in ("timed out", "timeout", "deadline")):
        return (
            f"Ray did not start in time on this machine, which is busy or short of memory ({message}): give the same "
            "command again once it is quieter, or name a cluster that runs already in resources.ray_address or "
            f"{ADDRESS}; {logs}"
        )
    return f"the local Ray cluster did not start: {message}; `sdm-ray doctor --deep` tries it alone; {logs}"


@contextmanager
def free_agent_port() -> Iterator[None]:
    """Make a Ray that starts within the block choose a free port for its dashboard agent, as for all other ports.

    `ray.init` has no option for this port and uses 52365; a later `ray start --head` on this machine could then not
    accept jobs.
    """
    from ray._private import parameter

    before = parameter.RayParams

    def params(*args: Any, **options: Any) -> Any:
        return before(*args, **({"dashboard_agent_listen_port": 0} | options))

    parameter.RayParams = params
    try:
        yield
    finally:
        parameter.RayParams = before


@contextmanager
def own_session() -> Iterator[None]:
    """Start Ray's daemons in a new process session.

    `timeout`, `scancel` and service managers signal the whole process group; in their own session the daemons survive
    this, so the driver can still end the sweep in order. The daemons and their workers exit when the driver does.
    """
    from ray._private import services

    before = services.ConsolePopen
    services.ConsolePopen = functools.partial(before, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = before


def _worker_environment() -> dict[str, str]:
    """Environment variables for workers, except those that the Ray job sets: Ray refuses to merge conflicting ones."""
    ours = json.loads(os.environ.get(JOB) or "{}").get("runtime_env") or {}
    return {name: value for name, value in ENVIRONMENT.items() if name not in (ours.get("env_vars") or {})}


@contextmanager
def ray_environment(*, local: bool) -> Iterator[None]:
    """Set Ray's environment variables within the block, and restore the old values after it.

    Ray reads some of them at import. A local cluster gets its own token, because Ray would write one to the home
    folder, which may be read-only. `RAY_ADDRESS` and a job's runtime environment belong to another cluster, so they are
    hidden from a local one.
    """
    values = ENVIRONMENT | (FREE_PORTS if local else {})
    hidden = {ADDRESS, JOB} if local else {name for name in (ADDRESS,) if "://" in os.environ.get(name, "")}
    if local and not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        values["RAY_AUTH_TOKEN"] = _token()
    before = {name: os.environ.get(name) for name in (*values, "RAY_AUTH_MODE", *hidden)}
    os.environ.update(values)
    for name in hidden:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@cache
def _token() -> str:
    """Token of all local clusters of this process; a single one, because Ray caches the first token that it reads."""
    return secrets.token_hex(32)


def _make_folder(owner: Path | None) -> str:
    """Create Ray's temporary folder, in /tmp if possible: it holds sockets, whose paths are limited to 107 bytes."""
    parent = Path("/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir())
    if owner is None:
        return tempfile.mkdtemp(prefix=FOLDER, dir=parent)
    folder = parent / f"{FOLDER}{digest(str(owner))}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise RunError(f"cannot make {folder} for Ray: {error.strerror or error}") from None
    return str(folder)
