"""The sweep's own record of its trials: one JSON line for each thing that happened, flushed to disk at once.

It is what a sweep resumes from. A line that a killed driver left unfinished at the end is cut off.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdm_ray.config import Method
from sdm_ray.core.errors import RunError
from sdm_ray.core.result import TrialResult

FILE = "trials.jsonl"
Role = Literal["reference", "search", "final"]
"""Of a trial: compared with, searched, or a searched or reference model under the final attack."""


@dataclass
class Entry:
    """One trial: what it was asked to do, and how it ended (None while it has not)."""

    trial_id: str
    role: Role
    method: Method
    """Method of a reference; that of the result for a searched trial."""
    number: int | None = None
    """Number of the Optuna trial; None where Optuna did not ask for it."""
    params: dict[str, Any] = field(default_factory=dict)
    """Searched settings by dotted path."""
    point: str = ""
    """The point that it is one training seed of: the id of that point's first trial."""
    seed_index: int = 0
    """Which of the point's training seeds."""
    result: TrialResult | None = None
    seconds: float = 0.0
    """How long it occupied a process, as far as the driver that saw its end knows."""

    def __post_init__(self) -> None:
        self.point = self.point or self.trial_id


class Ledger:
    """Entries in the order of their start, in memory and in `trials.jsonl`."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Read what is there; with `read_only`, which another driver's ledger asks for, change nothing.

        Raises:
            RunError: when the file is damaged elsewhere than at its end, or cannot be read or written.
        """
        self.path = folder / FILE
        self.trials_folder = folder / "trials"
        self.entries: dict[str, Entry] = {}
        self.study_name: str | None = None
        self.rungs: dict[int, dict[str, tuple[float, float]]] = {}
        """(desired, harmful) accuracy on validation, by outer step and trial."""
        self.elapsed = 0.0
        """Seconds that the sweep had run, earlier drivers included, when the last trial ended."""
        try:
            self._read(repair=not read_only)
            written = Path(os.devnull) if read_only else self.path
            self._file = written.open("a", encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot use {self.path}: {error.strerror or error}") from None

    def name_study(self, name: str) -> None:
        """Record the name of the Optuna study, once."""
        self._append({"event": "study", "name": name})

    def start(self, entry: Entry) -> None:
        """Record a trial before it runs; an entry that failed before is started afresh."""
        self._append(
            {
                "event": "trial",
                "trial_id": entry.trial_id,
                "role": entry.role,
                "method": entry.method,
                "number": entry.number,
                "params": entry.params,
                "point": entry.point,
                "seed_index": entry.seed_index,
            }
        )

    def finish(self, result: TrialResult, *, seconds: float = 0.0, elapsed: float = 0.0) -> None:
        """Record how a trial ended, how long it ran, and how long the sweep has run."""
        times = {"seconds": round(seconds, 3), "elapsed": round(elapsed, 3)}
        self._append({"event": "result", **times, **_plain(result.to_dict())})

    def climb(self, trial_id: str, step: int, desired: float, harmful: float) -> None:
        """Record what a trial measured at a rung."""
        self._append({"event": "rung", "trial_id": trial_id, "step": step, "desired": desired, "harmful": harmful})

    def output_dir(self, trial_id: str) -> Path:
        """The folder of a trial."""
        return self.trials_folder / trial_id

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, event: dict[str, Any]) -> None:
        line = json.dumps(event, allow_nan=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror or error}; free space and --resume") from None
        self._apply(json.loads(line))

    def _read(self, *, repair: bool) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_bytes().split(b"\n")
        whole = 0
        for number, line in enumerate(lines[:-1], start=1):
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines) - 1:
                    raise RunError(f"{self.path}, line {number}, is damaged: {error}") from None
                break
            whole += len(line) + 1
        if repair:
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def _apply(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        if kind == "study":
            self.study_name = event["name"]
        elif kind == "rung":
            self.rungs.setdefault(event["step"], {})[event["trial_id"]] = (event["desired"], event["harmful"])
        elif kind == "trial":
            self.entries[event["trial_id"]] = Entry(**event)
        else:
            metrics = {name: math.nan if value is None else value for name, value in event["metrics"].items()}
            trial_id = event["trial_id"]
            seconds, self.elapsed = event.pop("seconds", 0.0), event.pop("elapsed", self.elapsed)
            result = TrialResult.from_dict({**event, "metrics": metrics}, self.output_dir(trial_id))
            self.entries[trial_id].result, self.entries[trial_id].seconds = result, seconds


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    metrics = {name: value if math.isfinite(value) else None for name, value in values["metrics"].items()}
    return {**values, "metrics": metrics}
