"""Ray Tune's callback, stopper and scheduler: progress reports, a clean stop, pruning, and a workaround for a hang."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler

from sdm_ray.core.errors import RunError
from sdm_ray.core.metric_names import Metric
from sdm_ray.sweep.cluster.watchdog import hang_dump
from sdm_ray.sweep.interrupt import StopSwitch
from sdm_ray.sweep.state.labels import run_name, run_params, trial_tags
from sdm_ray.sweep.state.recorder import Recorder
from sdm_ray.sweep.state.state import SweepState
from sdm_ray.sweep.tune.deaths import death_reason
from sdm_ray.sweep.tune.jobs import TRIAL
from sdm_ray.sweep.tune.searcher import DriverOnly
from sdm_ray.sweep.view.live import View
from sdm_ray.tracking import Tracker

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class SweepCallback(DriverOnly, Callback):
    """Forwards the events of trials to the state, the tracker and the view."""

    def __init__(self, state: SweepState, *, view: View, tracker: Tracker, switch: StopSwitch) -> None:
        self._state = state
        self._view = view
        self._tracker = tracker
        self._switch = switch

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Register a trial that a process has started; called again after a retry."""
        trial_id = trial.config[TRIAL]
        if trial_id not in self._state.running:
            self._state.begin(trial_id)
            entry = self._state.trials[trial_id]
            params, name = run_params(self._state.settings, entry), run_name(self._state.settings, entry)
            self._tracker.start_trial(trial_id, params, trial_tags(entry), name=name)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Take the progress, metrics and notices of a running trial."""
        trial_id = trial.config[TRIAL]
        running = self._state.running.get(trial_id)
        if running is not None and result.get("progress"):
            running.stage, running.done, running.total = result["progress"]
        for step, metrics in result.get("rows") or ():
            self._tracker.log(trial_id, metrics, step)
        for said in result.get("notices") or ():
            self._view.message(f"trial {trial_id}: {said}")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Report that the process of a trial died and that Tune restarts it."""
        running = self._state.running.get(trial.config[TRIAL])
        if running is not None:
            running.retries += 1
            running.stage = "restarting"
        trial_id = trial.config[TRIAL]
        reason = self._state.deaths[trial_id].reason if trial_id in self._state.deaths else None
        died = "its process died" + (f" ({reason})" if reason else "")
        self._view.message(f"trial {trial_id}: {died}; it goes on from its checkpoint")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Update the view and check the tracker; called about ten times a second."""
        if self._tracker.error is not None:
            self._switch.request("tracking")
        self._view.update(self._state.snapshot)


class SweepStopper(DriverOnly, Stopper):
    """Ends the experiment when the switch is set; never stops a single trial."""

    def __init__(self, switch: StopSwitch) -> None:
        self._switch = switch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether to end the experiment; called after every event."""
        return self._switch.reason is not None


class SweepScheduler(DriverOnly, FIFOScheduler):
    """FIFO scheduler that prunes trials at their rungs, and records why a process died.

    Tune 2.60 hangs if a process dies while it is reset for its next trial: the trial stays in the set of resetting
    trials and never gets another process. This scheduler removes it from that set.

    Args:
        recorder: the sweep's state and ledger.
        on_error: called with the exception if the ledger cannot be written.
    """

    def __init__(self, recorder: Recorder, on_error: Callable[[Exception], object]) -> None:
        super().__init__()
        self._recorder, self._on_error = recorder, on_error

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stop a trial if its metrics at a rung cause it to be pruned."""
        rungs = [_rung(metrics) for _, metrics in result.get("rows") or ()]
        try:
            pruned = [rung for rung in rungs if rung and self._recorder.at_rung(trial.config[TRIAL], *rung) is not None]
        except RunError as error:
            self._on_error(error)
            pruned = []
        decision: str = self.STOP if pruned else self.CONTINUE
        return decision

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Record the death of a trial's process; called before a retry and before a trial is given up."""
        getattr(tune_controller, "_resetting_trials", set()).discard(trial)
        trial_id = trial.config[TRIAL]
        dump = hang_dump(self._recorder.ledger.output_dir(trial_id))
        self._recorder.state.died(trial_id, death_reason(_error_text(trial), _log_folder()), dump=dump)


def _error_text(trial: Trial) -> str:
    """Text of Tune's error file of a trial. `Trial.get_error` would read a path that is not written yet."""
    try:
        return Path(trial.error_file or "").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _log_folder() -> Path | None:
    """Ray's log folder on this machine."""
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    return None if node is None else Path(node.get_logs_dir_path())


def _rung(metrics: Mapping[str, float]) -> tuple[int, float, float] | None:
    """(step, desired, harmful) from a rung's metrics; None for other metrics, or if the rung's attack was not valid."""
    for name in metrics:
        parts = name.split("/")
        if parts[0] == "rung" and name == Metric.rung_harmful(step := int(parts[1])):
            return step, metrics[Metric.rung_desired(step)], metrics[name]
    return None
