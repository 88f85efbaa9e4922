"""What an attack leaves behind: a record of every fine-tune, a cell for every n, and files of both."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from sdm_ray.attack.families import Phase
from sdm_ray.attack.metrics import t_interval
from sdm_ray.errors import RunError
from sdm_ray.files import atomic_path, read_json, write_json
from sdm_ray.types import Metric

FORMAT_VERSION = 1
"""Version of the JSON layout, and of the protocol behind the numbers."""

RecordStatus = Literal["ok", "diverged", "crashed"]


@dataclass(frozen=True, kw_only=True)
class AttackRecord:
    """One fine-tune. Scores are NaN where there is none: test in the search, everything of a failed fine-tune."""

    phase: Phase
    family: str
    num_examples: int
    trial: int
    """Number of the search point; re-runs carry the winner's."""
    seed_index: int
    attempt: int
    """1 for the retry of a failed fine-tune."""
    status: RecordStatus
    optimizer: str
    learning_rate: float
    num_steps: int
    batch_size: int
    frozen: bool
    examples_seen: int
    """Steps times batch size."""
    seconds: float
    """This fine-tune's share of the wall-clock time of the stack that it ran in, scoring included."""
    train_loss: float = math.nan
    """Cross-entropy of the last batch."""
    permutation: str = ""
    """Label that each predicted class is read as, fitted on attacker-validation: `0 1` changes nothing."""
    logit_scale: float = math.nan
    """Inverse of the temperature fitted on attacker-validation."""
    val_accuracy: float = math.nan
    """Balanced accuracy on attacker-validation."""
    val_loss: float = math.nan
    """Cross-entropy on attacker-validation, calibrated."""
    best_so_far: float = math.nan
    """Best mean validation accuracy of this n's search points up to and including this one."""
    test_accuracy: float = math.nan
    """Balanced accuracy on test."""
    test_plain_accuracy: float = math.nan
    test_loss: float = math.nan
    """Cross-entropy on test in nats, calibrated on attacker-validation (renaming and temperature)."""
    test_raw_loss: float = math.nan
    """The same without the temperature."""
    test_mutual_information: float = math.nan
    error: str = ""
    """Why it failed."""


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The hyper-parameters that a search chose on validation."""

    family: str
    trial: int
    learning_rate: float
    num_steps: int
    batch_size: int
    frozen: bool
    val_accuracy: float
    """Mean balanced validation accuracy over the search's seeds."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The result at one n: the winner of the search, re-run on fresh seeds and scored on test."""

    num_examples: int
    valid: bool
    """Whether enough fine-tunes finished. An invalid cell has NaN for a result, never a low accuracy."""
    reason: str
    """Why it is invalid; empty otherwise."""
    winner: Winner | None
    accuracy: float
    """Mean balanced test accuracy over re-runs."""
    accuracy_low: float
    """Lower end of the 95 % t interval over seeds, within [0, 1]; see `metrics.t_interval` for what it leaves out."""
    accuracy_high: float
    plain_accuracy: float
    loss: float
    """Mean test cross-entropy in nats, calibrated on validation (classes renamed, one temperature)."""
    raw_loss: float
    """The same without the temperature."""
    mutual_information: float
    """Mean mutual information in nats between prediction and label on test."""
    seed_accuracies: tuple[float, ...]
    """Balanced test accuracy by seed index; NaN for a missing re-run."""
    seed_losses: tuple[float, ...]
    num_missing: int
    """Re-runs that failed twice."""
    mean_search_accuracy: float
    """Mean validation accuracy of the search points that finished."""


@dataclass(frozen=True, kw_only=True)
class AttackReport:
    """A whole attack on one model."""

    settings: dict[str, Any]
    """The attack's settings."""
    data_digest: str
    num_classes: int
    base_rate: float
    """Share of the most frequent label in test; balanced accuracy without information is 1 / num_classes."""
    num_validation: int
    """Attacker-validation examples that the search scored on."""
    num_test: int
    """Test examples."""
    seconds: float
    cells: tuple[Cell, ...]
    records: list[AttackRecord]

    @property
    def worst_accuracy(self) -> float:
        """Mean over n of the accuracies, each the worst case over the attacker's search; NaN if a cell is invalid."""
        return _mean([cell.accuracy for cell in self.cells])

    def metrics(self) -> dict[str, float]:
        """Metrics by the names of `Metric`."""
        result = {
            str(Metric.HARMFUL_WORST_ACCURACY): self.worst_accuracy,
            str(Metric.HARMFUL_MEAN_ACCURACY): _mean([cell.mean_search_accuracy for cell in self.cells]),
            str(Metric.HARMFUL_BASE_RATE): self.base_rate,
            str(Metric.COST_ATTACK_SECONDS): self.seconds,
            str(Metric.COST_NUM_FINE_TUNES): float(len(self.records)),
        }
        # Seeds of different n are independent draws, so pairing them by index gives as many draws of the mean over n.
        by_seed = zip(*(cell.seed_accuracies for cell in self.cells), strict=True)
        low, high = t_interval([_mean(list(values)) for values in by_seed if not any(map(math.isnan, values))])
        worst = str(Metric.HARMFUL_WORST_ACCURACY)
        result |= {Metric.low(worst): max(low, 0.0), Metric.high(worst): min(high, 1.0)}
        for cell in self.cells:
            name = Metric.harmful_accuracy(cell.num_examples)
            result |= {name: cell.accuracy, Metric.low(name): cell.accuracy_low, Metric.high(name): cell.accuracy_high}
            result[Metric.harmful_loss(cell.num_examples)] = cell.loss
        return result

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes null."""
        plain: dict[str, Any] = _without_nan({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)})
        return plain

    @classmethod
    def from_json(cls, value: Any) -> AttackReport:
        """The inverse of `to_json`.

        Raises:
            ValueError: for anything that is not a report of this format.
        """
        try:
            if value["format_version"] != FORMAT_VERSION:
                raise ValueError(f"attack report of format {value['format_version']}, expected {FORMAT_VERSION}")
            fields = {name: item for name, item in value.items() if name != "format_version"}
            fields["cells"] = tuple(_cell(cell) for cell in fields["cells"])
            fields["records"] = [_restore(AttackRecord, record) for record in fields["records"]]
            report: AttackReport = _restore(cls, fields)
            return report
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an attack report: {error!r}") from error

    def write_json(self, path: Path) -> None:
        """Write `to_json`, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def read_json(cls, path: Path) -> AttackReport:
        """Read a report.

        Raises:
            RunError: when the file cannot be read or holds no report.
        """
        try:
            return cls.from_json(read_json(path))
        except ValueError as error:
            raise RunError(f"cannot read {path}: {error}") from None

    def write_parquet(self, path: Path) -> None:
        """Write one row for each fine-tune, atomically; columns are the fields of `AttackRecord`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
        hints = get_type_hints(AttackRecord)
        schema = pa.schema([(name, types.get(hint, pa.string())) for name, hint in hints.items()])
        rows = [dataclasses.asdict(record) for record in self.records]
        with atomic_path(path) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _restore(cls: Any, value: dict[str, Any]) -> Any:
    """A dataclass from its plain values; null in a float field is NaN."""
    hints = get_type_hints(cls)
    return cls(**{name: math.nan if item is None and hints[name] is float else item for name, item in value.items()})


def _cell(value: dict[str, Any]) -> Cell:
    value = dict(value)
    for name in ("seed_accuracies", "seed_losses"):
        value[name] = tuple(math.nan if item is None else item for item in value[name])
    if value["winner"] is not None:
        value["winner"] = _restore(Winner, value["winner"])
    cell: Cell = _restore(Cell, value)
    return cell
