"""The Ray cluster of a sweep: a local one on loopback, one that is named, or one that is connected already."""

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
"""Object store of a local cluster: trials exchange reports only."""

ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # with it, a local cluster binds to 127.0.0.1 alone
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # Ray prints raw accounts of dead workers; a view says it in a sentence
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the settings start where the sweep was started
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints even when it is set to be silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "60",  # the sweep resumes from its own ledger
}

FREE_PORTS = {"AUTOSCALER_METRIC_PORT": "0", "DASHBOARD_METRIC_PORT": "0"}
"""Lets a local cluster choose ports that Ray would take as fixed ones; see `free_agent_port` too."""


@contextmanager
def cluster(
    resources: ResourceSettings, *, owner: Path | None = None, announce: Callable[[str], None] = lambda text: None
) -> Iterator[int]:
    """Connect to Ray, or start it, for the time of the block; gives the number of trials that fit at once.

    What is already connected in this process is used and left running; else `choose_cluster` says which. The temporary
    folder of a local cluster belongs to `owner`, the locked folder of a sweep, so that the next driver removes what a
    killed one left there, or one that did not start. `announce` is told which Ray it is, and why, before it is there.

    Raises:
        RunError: when Ray does not start or does not answer.
        UsageError: when a trial could never fit, with what it needs and what there is, or for an address that no sweep
            can use.
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
        except BaseException:  # the folder stays, for its logs
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
    """How many trials run at once.

    Raises:
        UsageError: when not even one fits.
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
    """Send what Ray, Optuna and database migrations log, and Python's warnings, to a file in place of the terminal."""
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
    """Why there is no Ray, and what to do about it."""
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
    """Let a Ray that starts in the block choose the port of its dashboard agent, as it chooses all others.

    `ray.init` has no option for it and takes 52365; a later `ray start --head` beside it could then take no jobs.
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
    """Start Ray's daemons in a session of their own.

    `timeout`, `scancel` and a service manager signal the whole process group: the driver is to end the sweep while its
    Ray is still there. The daemons end with the driver all the same, and their workers with them.
    """
    from ray._private import services

    before = services.ConsolePopen
    services.ConsolePopen = functools.partial(before, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = before


def _worker_environment() -> dict[str, str]:
    """What workers of a cluster need, but for what the job has set itself, with which Ray would refuse to merge it."""
    ours = json.loads(os.environ.get(JOB) or "{}").get("runtime_env") or {}
    return {name: value for name, value in ENVIRONMENT.items() if name not in (ours.get("env_vars") or {})}


@contextmanager
def ray_environment(*, local: bool) -> Iterator[None]:
    """Set what Ray reads from the environment, some of it when it is imported; what was there is put back.

    A local cluster gets a token of its own: Ray would write one to the home folder, which may be read-only. It is kept
    from another cluster's address and from the runtime environment of a job there, which it could not make.
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
    """One for all local clusters of this process: Ray keeps the first token that it has read."""
    return secrets.token_hex(32)


def _make_folder(owner: Path | None) -> str:
    """Ray's sockets lie below its folder, and their paths may hold 107 bytes: a deep TMPDIR would not do."""
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
