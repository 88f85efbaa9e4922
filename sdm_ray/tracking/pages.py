"""Where a person finds runs: the command that opens MLflow's interface, and addresses in it."""

from __future__ import annotations

import json
import shlex
from urllib.parse import quote

from sdm_ray.tracking.address import masked
from sdm_ray.tracking.outbox import SWEEP_RUN
from sdm_ray.tracking.sink import SWEEP_TAG, TRIAL_TAG, MlflowSink

MAX_COMPARED_RUNS = 100
"""MLflow's page of comparison names every run in its address."""
UI_PORT = 5000
UI_SERVER = f"http://127.0.0.1:{UI_PORT}"
"""Where the printed command shows what lies in a database."""


def ui_hint(uri: str, page: str) -> str:
    """The command that opens MLflow's interface, where one is needed, and a page in it."""
    if _is_server(uri):
        return f"{masked(uri).rstrip('/')}/{page}"
    command = f"mlflow ui --backend-store-uri {shlex.quote(masked(uri))} --host 127.0.0.1 --port {UI_PORT}"
    command += " --workers 1"
    return f"{command}\n{UI_SERVER}/{page}"


def run_link(uri: str, experiment_id: str | None, run_id: str) -> dict[str, str]:
    """A run and its page, as `Tracker.run_link` gives them."""
    server = masked(uri).rstrip("/") if _is_server(uri) else UI_SERVER
    return {"mlflow_run": run_id, "mlflow_url": f"{server}/#/experiments/{experiment_id}/runs/{run_id}"}


def sweep_page(sink: MlflowSink) -> str:
    """The comparison of the sweep's trials, or a run without any; their list, where none began or they are too many."""
    runs, lone = sink.trial_runs(), sink.lone_run()
    if lone is not None:
        return f"#/experiments/{sink.experiment_id}/runs/{lone}"
    if 0 < len(runs) <= MAX_COMPARED_RUNS:
        lists = (json.dumps(values, separators=(",", ":")) for values in (runs, [sink.experiment_id]))
        return "#/compare-runs?runs={}&experiments={}".format(*map(quote, lists))
    query = f"tags.`{SWEEP_TAG}` = '{sink.sweep_id}' and tags.`{TRIAL_TAG}` != '{SWEEP_RUN}'"
    return f"#/experiments/{sink.experiment_id}/runs?searchFilter={quote(query, safe='')}&compareRunsMode=CHART"


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))
