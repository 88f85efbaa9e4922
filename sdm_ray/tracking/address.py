"""Location of an MLflow server or database: checks that need no import of MLflow."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import user_path

PREFIX = "mlflow:"
CONNECT_TIMEOUT_SECONDS = 3.0
_DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_OFF = "or switch tracking off with tracking.enabled=false"


def is_reference(text: str) -> bool:
    """Whether a text is a run reference (`mlflow:RUN_ID`) rather than a file."""
    return text.startswith(PREFIX)


def sqlite_file(uri: str) -> Path | None:
    """File of a `sqlite:///path` URI (four slashes before an absolute path); None for any other URI."""
    scheme, separator, path = uri.partition(":///")
    if not separator or scheme.split("+")[0] != "sqlite":
        return None
    return Path(path.split("?")[0]).absolute()


def at_home(uri: str, setting: str) -> str:
    """Expand a leading `~` in the path of a local address, because databases do not.

    Raises:
        UsageError: if the home folder does not exist; the message begins with the setting.
    """
    found = re.fullmatch(r"(sqlite(?:\+\w+)?:///|journal:///?)(~.*)", uri)
    return uri if found is None else f"{found[1]}{user_path(found[2], setting)}"


def sqlite_uri(path: Path) -> str:
    """URI of a sqlite file."""
    return f"sqlite:///{path.absolute()}"


def sweep_id_file(sweep_dir: Path) -> Path:
    """File with the id that all runs of a sweep share; it is missing if the sweep was not tracked."""
    return sweep_dir / "tracking" / "sweep_id"


def check_address(uri: str) -> None:
    """Reject unusable addresses, and check within a few seconds that a server is listening.

    Raises:
        UsageError: for a URI that MLflow cannot write to.
        RunError: if no connection can be made.
    """
    file = sqlite_file(uri)
    scheme = urlsplit(uri).scheme.split("+")[0]
    if file is not None:
        if not file.parent.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
            raise UsageError(f"tracking.uri: {file} cannot be written; choose another file, {_OFF}")
    elif scheme in ("", "file"):
        raise UsageError(
            f"tracking.uri: {uri!r} is a folder, which MLflow no longer writes to; give sqlite:///PATH/mlflow.db or "
            f"the http(s) address of a server, {_OFF}"
        )
    elif scheme in ("http", "https", *_DATABASES):
        _connect(uri, {"http": 80, "https": 443, **_DATABASES}[scheme])
    elif not scheme.startswith("databricks"):
        raise UsageError(
            f"tracking.uri: {masked(uri)!r} has a scheme that MLflow does not know; give sqlite:///PATH/mlflow.db or "
            f"the http(s) address of a server, {_OFF}"
        )


def masked(uri: str) -> str:
    """URI without its password."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", uri)


def unreachable(uri: str, reason: object) -> RunError:
    """Error for a server that does not answer."""
    return RunError(
        f"the MLflow server at {masked(uri)} does not answer ({reason}); start it, correct tracking.uri (or "
        f"MLFLOW_TRACKING_URI), {_OFF}"
    )


def is_refusal(words: str) -> bool:
    """Whether an error of MLflow's client means that credentials are missing or wrong."""
    return re.search(r"\b(401|403)\b|UNAUTHENTICATED|PERMISSION_DENIED", words) is not None


def refused(uri: str, reason: object) -> RunError:
    """Error for a server that requires credentials."""
    return RunError(
        f"the MLflow server at {masked(uri)} refuses ({reason}); set MLFLOW_TRACKING_TOKEN, or "
        f"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, {_OFF}"
    )


def _connect(uri: str, default_port: int) -> None:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port or default_port
    except ValueError as error:
        raise UsageError(f"tracking.uri: {masked(uri)!r} is no address ({error}); correct it, {_OFF}") from None
    if not host:
        raise UsageError(f"tracking.uri: {masked(uri)!r} names no host; correct it, {_OFF}")
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_SECONDS).close()
    except OSError as error:
        raise unreachable(uri, error.strerror or error) from None
