"""The sweep's own record of its trials: one JSON line for each thing that happened, flushed to disk at once.

It is what a sweep resumes from. A line that a killed driver left unfinished at the end is cut off. Damaged lines
elsewhere are left out where a sweep is only looked at; a sweep that goes on makes up for them, or is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdm_ray.config import Method
from sdm_ray.core.errors import RunError
from sdm_ray.core.files import (
    MALFORMED,
    LineFile,
    atomic_path,
    copy_aside,
    nan_for_null,
    null_for_nan,
    reason,
    write_bytes,
)  # fmt: skip
from sdm_ray.core.result import TrialResult, check_kinds

FILE = "trials.jsonl"
Role = Literal["reference", "search", "final"]
"""A trial is a reference, a searched one, or the final attack on the model of either."""


@dataclass
class Entry:
    """One trial: what it was asked to do, and how it ended (None while it has not)."""

    trial_id: str
    role: Role
    method: Method
    """Training method."""
    number: int | None = None
    """Number of the Optuna trial; None for references and final attacks."""
    params: dict[str, Any] = field(default_factory=dict)
    """Searched settings by dotted path."""
    point: str = ""
    """Id of its point, which is the id of the point's first trial; the point's trials differ in their training seed."""
    seed_index: int = 0
    """Number of its training seed within the point, from 0."""
    result: TrialResult | None = None
    seconds: float = 0.0
    """How long it occupied a process under the driver that saw its end."""
    num_killed: int = 0
    """How often a driver gave it up because its process was ended from outside."""
    killed: str = ""
    """How its process was ended, the last time."""

    def __post_init__(self) -> None:
        self.point = self.point or self.trial_id


@dataclass
class Record:
    """What a ledger's lines say, in memory."""

    entries: dict[str, Entry] = field(default_factory=dict)
    """Trials by id, in the order of their start."""
    rungs: dict[int, dict[str, tuple[float, float]]] = field(default_factory=dict)
    """(desired, harmful) accuracy on validation, by outer step and trial."""
    elapsed: float = 0.0
    """Seconds that the sweep had run, earlier drivers included, when the last trial ended."""
    study_name: str | None = None
    """Of the Optuna study; None until there is one."""
    sampler_options: dict[str, Any] | None = None
    """Of Optuna's sampler; None for sweeps that began before they were recorded."""
    damaged: list[str] = field(default_factory=list)
    """Lines that cannot be read, each with the reason; always empty where they are refused."""


def read_record(folder: Path, *, around: bool = False) -> Record:
    """Read a sweep's ledger and change nothing; a line that is still being written is left out.

    Args:
        folder: of the sweep.
        around: leave out damaged lines, and list them in the record.

    Raises:
        RunError: when the file is damaged elsewhere than at its end, unless `around`; when it cannot be read.
    """
    record, _ = _read(folder)
    if record.damaged and not around:
        raise RunError(
            f"{folder / FILE}, {record.damaged[0]}, is damaged; restore it, or let `sdm-ray sweep --resume` "
            "make up for it"
        )
    return record


class Ledger:
    """Appends to `trials.jsonl`; `record` is what stood there when it was opened."""

    def __init__(self, folder: Path) -> None:
        """Open the file, or create it; an unfinished line at its end is cut off.

        Damaged lines elsewhere are taken out, and a copy of the file as it was is kept: a trial that thereby has no
        end is run again, or its `result.json` is read again.

        Raises:
            RunError: when damaged lines cannot be made up for, or the file cannot be read or written.
        """
        self.path = folder / FILE
        self.record, lines = _read(folder)
        self.mended: str | None = None
        """What was taken out, as a sentence for people; None where nothing was."""
        if self.record.damaged:
            self._mend(lines)
        size = sum(len(line) + 1 for line in lines)
        try:
            self._file = LineFile(self.path, size)
        except OSError as error:
            raise RunError(f"cannot use {self.path}: {error.strerror or error}") from None

    def _mend(self, lines: list[bytes]) -> None:
        """Write the sound lines anew."""
        lost = _lost_points(self.record, lines)
        if lost:
            raise RunError(
                f"{self.path}, {self.record.damaged[0]}, is damaged, and nothing else says what {lost[0]} is to try; "
                "restore the line from a copy, or start another sweep from what can be read with --fork"
            )
        kept = copy_aside(self.path)
        with atomic_path(self.path, sync=True) as temporary:
            write_bytes(temporary, b"".join(line + b"\n" for line in lines))
        what = f"line {self.record.damaged[0].removeprefix('line ')}"
        more = f" and {len(self.record.damaged) - 1} more" if len(self.record.damaged) > 1 else ""
        self.mended = (
            f"{FILE} is damaged in {what}{more}: it lies in {kept.name}, and what these lines said is read again from "
            "the trials' folders or made anew"
        )

    def name_study(self, name: str, sampler_options: dict[str, Any]) -> None:
        """Record the name of the Optuna study and its sampler's options, once."""
        self._append({"event": "study", "name": name, "sampler_options": sampler_options})

    def start(self, entry: Entry) -> Entry:
        """Record a trial before it runs, and return it as it will be read again."""
        event = self._append(
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
        return _entry(event)

    def finish(self, result: TrialResult, *, seconds: float, elapsed: float) -> TrialResult:
        """Record a trial's result, and return it as it will be read again (a metric that is infinite is NaN then).

        Args:
            result: how the trial ended.
            seconds: how long it occupied a process.
            elapsed: how long the sweep has run.
        """
        times = {"seconds": round(seconds, 3), "elapsed": round(elapsed, 3)}
        return _result(self._append({"event": "result", **times, **_plain(result.to_dict())}), self.path.parent)

    def give_up(self, trial_id: str, reason: str) -> None:
        """Record that the process of a trial was ended from outside, and that this driver does not try it again."""
        self._append({"event": "killed", "trial_id": trial_id, "reason": reason})

    def record_rung(self, trial_id: str, step: int, desired: float, harmful: float) -> None:
        """Record what a trial measured at a rung."""
        self._append({"event": "rung", "trial_id": trial_id, "step": step, "desired": desired, "harmful": harmful})

    def output_dir(self, trial_id: str) -> Path:
        """The folder of a trial."""
        return trial_folder(self.path.parent, trial_id)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, event: dict[str, Any]) -> dict[str, Any]:
        line = json.dumps(event, allow_nan=False)
        try:
            self._file.append(f"{line}\n".encode(), sync=True)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror or error}; free space and --resume") from None
        written: dict[str, Any] = json.loads(line)
        return written


def trial_folder(sweep_folder: Path, trial_id: str) -> Path:
    """The folder of a trial in that of its sweep."""
    return sweep_folder / "trials" / trial_id


def _read(folder: Path) -> tuple[Record, list[bytes]]:
    """What the whole lines say, and these lines, each without its end; damaged ones are not among them."""
    path, record = folder / FILE, Record()
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise RunError(f"cannot use {path}: {error.strerror or error}") from None
    sound = []
    for number, line in enumerate(lines[:-1], start=1):
        event = None
        try:
            event = json.loads(line)
            _apply(event, record, folder)
        except MALFORMED as error:
            if event is not None or number < len(lines) - 1:  # else a kill or a full disk has torn the last one
                record.damaged.append(f"line {number} ({reason(error)})")
            continue
        sound.append(line)
    return record, sound


def _lost_points(record: Record, lines: list[bytes]) -> list[str]:
    """Searched points of which a line speaks, or between which there is a gap, and that no line begins."""
    spoken = {str(json.loads(line).get("trial_id")) for line in lines} | set(record.entries)
    spoken |= {match[0] for text in record.damaged if (match := re.search(r"t\d{4,}", text))}
    numbers = {int(name[1:]) for trial_id in spoken if (name := _POINT.sub("", trial_id)) and name[1:].isdigit()}
    known = {entry.point for entry in record.entries.values() if entry.role == "search"}
    return [name for index in range(max(numbers, default=-1) + 1) if (name := f"t{index:04d}") not in known]


_POINT = re.compile(r"(?:-s\d+)?(?:-final)?$|^(?!t\d{4,}(?:-|$)).*")
"""What is not the id of a searched point in the id of a trial."""


_KINDS = {
    **dict.fromkeys(("event", "trial_id", "role", "method", "point", "name", "reason"), "text"),
    **dict.fromkeys(("desired", "harmful", "seconds", "elapsed"), "number"),
    "params": "mapping", "seed_index": "whole", "step": "whole",
}  # fmt: skip
"""Of the values that events may hold."""


def _apply(event: dict[str, Any], record: Record, folder: Path) -> None:
    check_kinds(event, _KINDS)
    kind = event["event"]
    if kind == "study":
        record.study_name, record.sampler_options = event["name"], event.get("sampler_options")
    elif kind == "rung":
        record.entries[event["trial_id"]]  # a rung of a trial that never began is damaged
        record.rungs.setdefault(event["step"], {})[event["trial_id"]] = (event["desired"], event["harmful"])
    elif kind == "trial":
        record.entries[event["trial_id"]] = _entry(event)
    elif kind == "killed":
        entry = record.entries[event["trial_id"]]
        entry.num_killed, entry.killed = entry.num_killed + 1, event["reason"]
    else:
        entry = record.entries[event["trial_id"]]
        record.elapsed = event.get("elapsed", record.elapsed)
        entry.result, entry.seconds = _result(event, folder), event.get("seconds", 0.0)


def _entry(event: dict[str, Any]) -> Entry:
    return Entry(**{name: value for name, value in event.items() if name != "event"})


def _result(event: dict[str, Any], folder: Path) -> TrialResult:
    metrics = nan_for_null(event["metrics"])
    values = {name: value for name, value in event.items() if name not in ("event", "seconds", "elapsed")}
    return TrialResult.from_dict({**values, "metrics": metrics}, trial_folder(folder, event["trial_id"]))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    metrics = null_for_nan(values["metrics"])
    return {**values, "metrics": metrics}
