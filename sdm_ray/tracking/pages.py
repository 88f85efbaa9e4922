"""Command that opens MLflow's interface, and addresses of its pages."""

from __future__ import annotations

import json
import shlex
from urllib.parse import quote

from sdm_ray.tracking.address import masked
from sdm_ray.tracking.outbox import SWEEP_RUN
from sdm_ray.tracking.sink import SWEEP_TAG, TRIAL_TAG, MlflowSink

MAX_COMPARED_RUNS = 100
"""Most runs on a comparison page, whose address lists every run."""
UI_PORT = 5000
UI_SERVER = f"http://127.0.0.1:{UI_PORT}"
"""Address of the interface that the printed command starts."""


def ui_hint(uri: str, page: str) -> str:
    """Command that opens MLflow's interface, if one is needed, and a page in it."""
    if _is_server(uri):
        return f"{masked(uri).rstrip('/')}/{page}"
    command = f"mlflow ui --backend-store-uri {shlex.quote(masked(uri))} --host 127.0.0.1 --port {UI_PORT}"
    command += " --workers 1"
    return f"{command}\n{UI_SERVER}/{page}"


def run_link(uri: str, experiment_id: str | None, run_id: str) -> dict[str, str]:
    """Id of a run and the address of its page, see `Tracker.run_link`."""
    server = masked(uri).rstrip("/") if _is_server(uri) else UI_SERVER
    return {"mlflow_run": run_id, "mlflow_url": f"{server}/#/experiments/{experiment_id}/runs/{run_id}"}


def sweep_page(sink: MlflowSink) -> str:
    """Page that compares the runs of the sweep's trials, or their list if there are none or too many."""
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
