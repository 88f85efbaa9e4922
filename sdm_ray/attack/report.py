"""Results of an attack: a record for every fine-tune, a cell for every n, and their files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from sdm_ray.attack.families.base import Attacker
from sdm_ray.attack.families.token_probe import reading_words, site_words
from sdm_ray.core.errors import RunError
from sdm_ray.core.files import atomic_path, null_for_nan, read_json, write_json
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.statistics import mean, pooled_interval

FORMAT_VERSION = 2
"""Version of the JSON layout, and of the protocol behind the numbers."""

RecordStatus = Literal["ok", "diverged", "crashed"]

NOT_RERUN = "another family that shares its budget did better in the search"
"""Reason for a cell without a result although nothing failed, see `attack.shared_search`."""

FLAT = 0.01
"""Largest rise in accuracy over the last third of a best-so-far curve that counts as flat."""


@dataclass(frozen=True, kw_only=True)
class AttackRecord(Attacker):
    """One fine-tune. Missing scores are NaN: test scores in the search, all scores of a failed fine-tune."""

    status: RecordStatus
    examples_seen: int
    """Steps times batch size; for a probe, n."""
    seconds: float
    """This fine-tune's share of the wall-clock time of the stack that it ran in, scoring included."""
    flops: float = math.nan
    """By formula, see `attack.flops`."""
    curve_steps: tuple[int, ...] = ()
    """Steps at which it was evaluated; the last one is its end."""
    train_loss_curve: tuple[float, ...] = ()
    """Mean training loss between successive evaluated steps."""
    val_accuracy_curve: tuple[float, ...] = ()
    """Balanced accuracy on attacker-validation at these steps, each with its best label permutation; re-runs only."""
    permutation: str = ""
    """Label for each predicted class, fitted on attacker-validation; `0 1` is the identity."""
    logit_scale: float = math.nan
    """Inverse of the temperature fitted on attacker-validation."""
    val_accuracy: float = math.nan
    """Balanced accuracy on attacker-validation."""
    val_raw_accuracy: float = math.nan
    """The same without the permutation."""
    val_loss: float = math.nan
    """Cross-entropy on attacker-validation, calibrated."""
    best_so_far: float = math.nan
    """Best mean validation accuracy of the search up to and including this point."""
    test_accuracy: float = math.nan
    """Balanced accuracy on test."""
    test_plain_accuracy: float = math.nan
    test_macro_f1: float = math.nan
    test_loss: float = math.nan
    """Cross-entropy on test in nats, calibrated on attacker-validation (permutation and temperature)."""
    test_raw_loss: float = math.nan
    """The same without the temperature."""
    test_mutual_information: float = math.nan
    desired_accuracy: float = math.nan
    """Plain accuracy on the desired task after the attack, on test; re-runs only, if the desired head is released."""
    error: str = ""
    """Error message if it failed."""


@dataclass(frozen=True, kw_only=True)
class Winner(Attacker):
    """Hyper-parameters that a search selected on validation."""

    val_accuracy: float
    """Mean balanced validation accuracy over the search's seeds."""

    def describe(self) -> str:
        """Short description of the hyper-parameters."""
        if self.readout:
            reader = f"{self.readout} on {reading_words(self)}, {self.scaling}, of {site_words(self.layer)}"
            return f"{self.family}: {reader}, amount {self.amount:.3g}"
        if self.trains == "probe":
            where = "pooled features" if self.layer < 0 else f"hidden state {self.layer}"
            return f"{self.family} on {where}, amount {self.amount:.3g}"
        parts = [self.family, self.optimizer, f"learning rate {self.learning_rate:.3g}", f"{self.num_steps} steps"]
        parts += [f"batch {self.batch_size}"] + ([self.schedule] if self.schedule != "constant" else [])
        parts += [f"amount {self.amount:.3g}"] if self.edit else []
        parts += [f"rank {self.rank}"] if self.rank else []
        parts += [f"{self.depth} blocks frozen"] if self.depth else []
        parts += ["head only"] if self.trains == "head" and self.family != "head" else []
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The result of a family at one n: the winner of its search, re-run on fresh seeds and scored on test."""

    num_examples: int
    family: str
    valid: bool
    """Whether enough fine-tunes finished. An invalid cell has NaN for a result, never a low accuracy."""
    reason: str
    """Reason if it is invalid, otherwise empty. `NOT_RERUN` is not a failure."""
    winner: Winner | None
    """Winner of the first search if there are several."""
    accuracy: float
    """Mean balanced test accuracy over re-runs."""
    accuracy_low: float
    """Lower end of the 95 % t interval over seeds (over searches if there are several), within [0, 1]; see
    `t_interval` in `core.statistics` for its limits."""
    accuracy_high: float
    plain_accuracy: float
    macro_f1: float
    loss: float
    """Mean test cross-entropy in nats, calibrated on validation (permutation and temperature)."""
    raw_loss: float
    """The same without the temperature."""
    mutual_information: float
    """Mean mutual information in nats between prediction and label on test."""
    val_accuracy: float
    """Mean validation accuracy of the re-runs, which selects the worst family at an n."""
    seed_accuracies: tuple[float, ...]
    """Balanced test accuracy by seed index, searches concatenated; NaN for a missing re-run."""
    seed_losses: tuple[float, ...]
    num_missing: int
    """Re-runs that failed twice."""
    mean_search_accuracy: float
    """Mean validation accuracy of finished search points."""
    best_so_far: tuple[float, ...]
    """Best validation accuracy after each point of the search, averaged over searches."""
    flattened: bool
    """Whether the last third of the search improved by less than `FLAT`."""
    desired_accuracy: float = math.nan
    """Mean plain test accuracy of the attacked models on the desired task; NaN if it was not measured."""

    @property
    def failed(self) -> bool:
        """Whether a wanted result is missing."""
        return not self.valid and self.reason != NOT_RERUN


@dataclass(frozen=True, kw_only=True)
class AttackReport:
    """Report of the attack on one model."""

    settings: dict[str, Any]
    """The attack's settings."""
    data_digest: str
    num_classes: int
    base_rate: float
    """Share of the most frequent label in test; balanced accuracy without information is 1 / num_classes."""
    num_validation: int
    """Number of attacker-validation examples for scoring the search."""
    num_test: int
    """Number of test examples."""
    seconds: float
    cells: tuple[Cell, ...]
    """The worst family at each n, in increasing order of n."""
    family_cells: tuple[Cell, ...]
    """Results of every family at every n."""
    not_tried: tuple[str, ...]
    """Requested families that could not be tried, with the reasons."""
    records: list[AttackRecord]
    bounded: tuple[Cell, ...] = ()
    """The worst attack at each n whose models keep the desired accuracy (`attack.utility_share`), in increasing order
    of n; empty if that is unknown."""
    walking_back: tuple[Cell, ...] = ()
    """The worst family at each n among those that need the public encoder, which `cells` excludes. Empty if none was
    tried, and in reports of earlier versions."""
    portfolio: dict[str, Any] = field(default_factory=dict)
    """Portfolio whose entries were tried first: `name`, `num_points`, `seconds`, and `won` (families and n for which an
    entry won). Empty without a portfolio."""

    @property
    def num_searches(self) -> int:
        """Number of repetitions of the search."""
        return int(self.settings.get("num_searches", 1))

    def cell(self, family: str, num_examples: int) -> Cell | None:
        """Result of a family at an n; None if there is none."""
        found = (c for c in self.family_cells if (c.family, c.num_examples) == (family, num_examples))
        return next(found, None)

    @property
    def worst_accuracy(self) -> float:
        """Mean over n of the worst-case accuracies; NaN if a cell is invalid."""
        return mean([cell.accuracy for cell in self.cells])

    def metrics(self) -> dict[str, float]:
        """Values by metric name (`Metric`)."""
        result = {
            str(Metric.HARMFUL_WORST_ACCURACY): self.worst_accuracy,
            str(Metric.HARMFUL_MEAN_ACCURACY): mean([cell.mean_search_accuracy for cell in self.cells]),
            str(Metric.HARMFUL_BASE_RATE): self.base_rate,
            str(Metric.COST_ATTACK_SECONDS): self.seconds,
            str(Metric.COST_NUM_FINE_TUNES): float(len(self.records)),
        }
        seeds = [units(cell.seed_accuracies, self.num_searches) for cell in self.cells]
        low, high = pooled_interval([[value for value in values if not math.isnan(value)] for values in seeds])
        worst = str(Metric.HARMFUL_WORST_ACCURACY)
        result |= {Metric.low(worst): max(low, 0.0), Metric.high(worst): min(high, 1.0)}
        for cell in self.cells:
            name = Metric.harmful_accuracy(cell.num_examples)
            result |= {name: cell.accuracy, Metric.low(name): cell.accuracy_low, Metric.high(name): cell.accuracy_high}
            result[Metric.harmful_loss(cell.num_examples)] = cell.loss
            result[Metric.harmful_f1(cell.num_examples)] = cell.macro_f1
            result[Metric.harmful_information(cell.num_examples)] = cell.mutual_information
        return result | self._utility()

    def _utility(self) -> dict[str, float]:
        """Desired accuracy of the attacked models, and the worst case among models that keep it."""
        left = {Metric.utility(cell.num_examples): cell.desired_accuracy for cell in self.cells}
        result = (
            {} if any(map(math.isnan, left.values())) else left | {str(Metric.UTILITY_DESIRED): mean(left.values())}
        )
        if self.bounded:
            result[str(Metric.HARMFUL_BOUNDED_ACCURACY)] = mean([cell.accuracy for cell in self.bounded])
        return result

    def to_json(self) -> dict[str, Any]:
        """JSON values, with null for NaN."""
        plain: dict[str, Any] = null_for_nan({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)})
        return plain

    @classmethod
    def from_json(cls, value: Any) -> AttackReport:
        """Inverse of `to_json`.

        Raises:
            ValueError: if the value is not a report in this format.
        """
        try:
            if value["format_version"] != FORMAT_VERSION:
                raise ValueError(f"attack report of format {value['format_version']}, expected {FORMAT_VERSION}")
            fields = {name: item for name, item in value.items() if name != "format_version"}
            for name in ("bounded", "walking_back"):
                fields.setdefault(name, [])
            for name in ("cells", "family_cells", "bounded", "walking_back"):
                fields[name] = tuple(_cell(cell) for cell in fields[name])
            fields["not_tried"] = tuple(fields["not_tried"])
            fields["records"] = [_restore(AttackRecord, record) for record in fields["records"]]
            report: AttackReport = _restore(cls, fields)
            return report
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"not an attack report: {error!r}") from error

    def write_json(self, path: Path) -> None:
        """Write `to_json`, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def read_json(cls, path: Path) -> AttackReport:
        """Read a report.

        Raises:
            RunError: if the file cannot be read or is not a report.
        """
        try:
            return cls.from_json(read_json(path))
        except ValueError as error:
            raise RunError(f"cannot read {path}: {error}") from None

    def write_parquet(self, path: Path) -> None:
        """Write one row for each fine-tune, atomically; columns are the fields of `AttackRecord`."""
        types: dict[Any, Any] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
        types |= {tuple[int, ...]: pa.list_(pa.int64()), tuple[float, ...]: pa.list_(pa.float64())}
        hints = get_type_hints(AttackRecord)
        schema = pa.schema([(name, types.get(hint, pa.string())) for name, hint in hints.items()])
        rows = [dataclasses.asdict(record) for record in self.records]
        with atomic_path(path) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def units(values: Sequence[float], num_searches: int) -> tuple[float, ...]:
    """Independent values for an interval: one per seed, or the mean of each search if there are several."""
    if num_searches == 1:
        return tuple(values)
    size = len(values) // num_searches
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    present = [[value for value in part if not math.isnan(value)] for part in parts]
    return tuple(sum(part) / len(part) if part else math.nan for part in present)


def is_flat(best: Sequence[float]) -> bool:
    """Whether a best-so-far curve has flattened: its last third rose by less than `FLAT`."""
    known = [value for value in best if not math.isnan(value)]
    return len(known) >= 3 and known[-1] - known[-1 - len(known) // 3] < FLAT


def _restore(cls: Any, value: dict[str, Any]) -> Any:
    """Rebuild a dataclass from JSON values; null becomes NaN in float fields and among floats."""
    hints = get_type_hints(cls)
    return cls(**{name: _value(item, hints[name]) for name, item in value.items()})


def _value(item: Any, hint: Any) -> Any:
    if hint is float:
        if not (item is None or isinstance(item, int | float)):
            raise TypeError(f"{item!r} stands where a number belongs")
        return math.nan if item is None else item
    if hint in (tuple[int, ...], tuple[float, ...]):
        return tuple(math.nan if part is None else part for part in item)
    return item


def _cell(value: dict[str, Any]) -> Cell:
    winner = None if value["winner"] is None else _restore(Winner, value["winner"])
    cell: Cell = _restore(Cell, {**value, "winner": winner})
    return cell
