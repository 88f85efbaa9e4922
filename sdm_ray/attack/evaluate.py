"""The attack on one model: search on attacker-validation, re-run the winner on fresh seeds, score once on test.

The protocol follows Henderson et al. (arXiv 2211.14946) with three corrections: the search never sees test, the
headline is the worst case over the search at each n re-estimated on fresh seeds, and a fine-tune that failed never
counts as blocked.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from sdm_ray.attack.execute import Executor, Outcome, retry_of
from sdm_ray.attack.families import FAMILIES, Attacker, Family
from sdm_ray.attack.metrics import evaluate, fit_calibration, t_interval
from sdm_ray.attack.plan import check_data, derived_seed
from sdm_ray.attack.regret import regret
from sdm_ray.attack.report import AttackRecord, AttackReport, Cell, Winner
from sdm_ray.attack.search import Point, SamplerFactory, SobolSampler
from sdm_ray.config.attack import AttackSettings
from sdm_ray.data.device import DeviceData
from sdm_ray.errors import RunError
from sdm_ray.types import Params, Progress, Split, Task

__all__ = ["AttackRecord", "AttackReport", "Cell", "attack_model", "regret"]


def attack_model(
    trunk: nn.Module,
    params: Params,
    data: DeviceData,
    settings: AttackSettings,
    *,
    task: Task = Task.HARMFUL,
    sampler: SamplerFactory = SobolSampler,
) -> Generator[Progress, None, AttackReport]:
    """Attack one released model.

    Args:
        trunk: the architecture.
        params: released weights by name; left as they are.
        data: attacker-train, attacker-validation and test are used, meta-training is not.
        settings: the attack.
        task: whose labels the attacker learns.
        sampler: proposes search points; by default the same quasi-random ones for every model.

    Yields:
        Progress in fine-tunes, between two stacks of them.

    Raises:
        UsageError: when a split is too small for n, or lacks a class.
        RunError: when every fine-tune crashed.
    """
    started = time.perf_counter()
    check_data(data, settings, task)
    executor = Executor(trunk, params, data, settings, task)
    seeds = settings.num_search_trials * settings.num_search_seeds + settings.num_rerun_seeds
    ledger = Ledger(executor, len(settings.num_examples) * seeds)
    searches = [Search(FAMILIES["fine_tune"], n, settings, sampler) for n in settings.num_examples]
    while any(search.remaining for search in searches):
        attackers = [attacker for search in searches if search.remaining for attacker in search.ask()]
        yield from ledger.run(attackers, with_test=False)
        for search in searches:
            search.tell(ledger.records)
    for search in searches:
        ledger.records = search.with_best_so_far(ledger.records)
    yield from ledger.run([rerun for search in searches for rerun in search.reruns()], with_test=True)
    crashed = [record.error for record in ledger.records if record.status == "crashed"]
    if len(crashed) == len(ledger.records):
        raise RunError(f"attack: every fine-tune crashed; the first one said: {crashed[0]}")
    labels = data.labels_host(task)[data.indices(Split.TEST)]
    counts = torch.bincount(labels, minlength=data.num_classes(task))
    return AttackReport(
        settings=settings.model_dump(mode="json"),
        data_digest=data.digest,
        num_classes=data.num_classes(task),
        base_rate=float(counts.max() / counts.sum()),
        num_validation=len(executor.val),
        num_test=len(executor.test),
        seconds=time.perf_counter() - started,
        cells=tuple(search.cell(ledger.records) for search in searches),
        records=ledger.records,
    )


class Ledger:
    """Runs attackers, retries those that fail once, and keeps a record of every fine-tune."""

    def __init__(self, executor: Executor, total: int) -> None:
        self._executor, self._done, self._total = executor, 0, total
        self.records: list[AttackRecord] = []

    def run(self, attackers: Sequence[Attacker], *, with_test: bool) -> Generator[Progress, None, None]:
        """Run attackers and the retries of those that failed."""
        while attackers:
            retries: list[Attacker] = []
            for outcomes in self._executor.run(attackers, with_test=with_test):
                self.records += [self._record(outcome) for outcome in outcomes]
                failed = [o.attacker for o in outcomes if o.status != "ok" and o.attacker.attempt == 0]
                retries += [retry_of(attacker) for attacker in failed]
                self._done += len(outcomes) - len(failed)
                yield Progress("attack", self._done, self._total, {})
            attackers = retries

    def _record(self, outcome: Outcome) -> AttackRecord:
        record = AttackRecord(
            **dataclasses.asdict(outcome.attacker),
            status=outcome.status,
            examples_seen=outcome.attacker.num_steps * outcome.attacker.batch_size,
            seconds=outcome.seconds,
            train_loss=outcome.train_loss,
            error=outcome.error,
        )
        if outcome.status != "ok" or outcome.val_logits is None:
            return record
        calibration = fit_calibration(outcome.val_logits, self._executor.val.labels)
        val = evaluate(outcome.val_logits, self._executor.val.labels, calibration)
        scores: dict[str, Any] = {"val_accuracy": val.accuracy, "val_loss": val.loss}
        if outcome.test_logits is not None:
            test = evaluate(outcome.test_logits, self._executor.test.labels, calibration)
            scores |= {f"test_{name}": value for name, value in test._asdict().items()}
        permutation = " ".join(map(str, calibration.permutation))
        return dataclasses.replace(record, permutation=permutation, logit_scale=calibration.scale, **scores)


class Search:
    """The attacker's search at one n, on validation scores alone."""

    def __init__(self, family: Family, num_examples: int, settings: AttackSettings, sampler: SamplerFactory) -> None:
        self._family, self._n, self._settings = family, num_examples, settings
        seed = derived_seed(settings.seed, "search", family.name, num_examples)
        self._sampler = sampler(family.space(settings, num_examples), seed)
        self._points: list[Point] = []
        self._scores: list[tuple[float, float]] = []
        """(accuracy, negative loss) of each point that was told, larger is better; NaN for a failed one."""

    @property
    def remaining(self) -> int:
        """Points still to be asked for."""
        return self._settings.num_search_trials - len(self._points)

    def ask(self) -> list[Attacker]:
        """Fine-tunes of the sampler's next points, one for each seed."""
        points = self._sampler.ask(self.remaining)
        first = len(self._points)
        self._points += points
        return [
            self._attacker(first + i, phase_seed)
            for i in range(len(points))
            for phase_seed in range(self._settings.num_search_seeds)
        ]

    def tell(self, records: Iterable[AttackRecord]) -> None:
        """Score the points that were asked for since the last call."""
        first = len(self._scores)
        if first == len(self._points):
            return
        finished = [r for r in records if r.phase == "search" and r.num_examples == self._n and r.status == "ok"]
        for trial in range(first, len(self._points)):
            mine = [record for record in finished if record.trial == trial]
            self._scores.append(self._score(mine))
        self._sampler.tell(self._points[first:], [accuracy for accuracy, _ in self._scores[first:]])

    def _score(self, records: Sequence[AttackRecord]) -> tuple[float, float]:
        wanted = self._settings.num_search_seeds
        if not records or wanted - len(records) > self._settings.max_failed_share * wanted:
            return math.nan, math.nan
        return _mean(r.val_accuracy for r in records), -_mean(r.val_loss for r in records)

    def _attacker(self, trial: int, seed_index: int) -> Attacker:
        attacker = self._family.attacker(self._points[trial], self._n)
        return dataclasses.replace(attacker, trial=trial, seed_index=seed_index)

    def _best_trial(self) -> int | None:
        trials = [i for i, (accuracy, _) in enumerate(self._scores) if not math.isnan(accuracy)]
        return max(trials, key=lambda i: self._scores[i], default=None)

    def reruns(self) -> list[Attacker]:
        """The winner on fresh seeds; nothing when every point failed."""
        trial = self._best_trial()
        if trial is None:
            return []
        seeds = range(self._settings.num_rerun_seeds)
        return [dataclasses.replace(self._attacker(trial, seed), phase="rerun") for seed in seeds]

    def with_best_so_far(self, records: Iterable[AttackRecord]) -> list[AttackRecord]:
        """The same records, those of this search with the best mean validation accuracy up to their trial."""
        best: list[float] = []
        for accuracy, _ in self._scores:
            best.append(max((value for value in (*best[-1:], accuracy) if not math.isnan(value)), default=math.nan))
        return [
            dataclasses.replace(record, best_so_far=best[record.trial])
            if record.phase == "search" and record.num_examples == self._n
            else record
            for record in records
        ]

    def cell(self, records: Iterable[AttackRecord]) -> Cell:
        """The result at this n."""
        reruns = [r for r in records if r.phase == "rerun" and r.num_examples == self._n and r.status == "ok"]
        by_seed = {record.seed_index: record for record in reruns}
        seeds = range(self._settings.num_rerun_seeds)
        missing = len(seeds) - len(by_seed)
        reason = ""
        if self._best_trial() is None:
            reason = "every search point crashed or diverged"
        elif missing > self._settings.max_failed_share * len(seeds) or not by_seed:
            reason = f"{missing} of {len(seeds)} re-runs crashed or diverged twice"
        used = [] if reason else reruns
        low, high = t_interval([record.test_accuracy for record in used])
        return Cell(
            num_examples=self._n,
            valid=not reason,
            reason=reason,
            winner=self._winner(),
            accuracy=_mean(r.test_accuracy for r in used),
            accuracy_low=max(low, 0.0) if used else math.nan,
            accuracy_high=min(high, 1.0) if used else math.nan,
            plain_accuracy=_mean(r.test_plain_accuracy for r in used),
            loss=_mean(r.test_loss for r in used),
            raw_loss=_mean(r.test_raw_loss for r in used),
            mutual_information=_mean(r.test_mutual_information for r in used),
            seed_accuracies=tuple(by_seed[s].test_accuracy if s in by_seed else math.nan for s in seeds),
            seed_losses=tuple(by_seed[s].test_loss if s in by_seed else math.nan for s in seeds),
            num_missing=missing,
            mean_search_accuracy=_mean(accuracy for accuracy, _ in self._scores if not math.isnan(accuracy)),
        )

    def _winner(self) -> Winner | None:
        trial = self._best_trial()
        if trial is None:
            return None
        attacker = self._attacker(trial, 0)
        return Winner(
            family=attacker.family,
            trial=trial,
            learning_rate=attacker.learning_rate,
            num_steps=attacker.num_steps,
            batch_size=attacker.batch_size,
            frozen=attacker.frozen,
            val_accuracy=self._scores[trial][0],
        )


def _mean(values: Iterable[float]) -> float:
    """Mean; NaN of nothing."""
    items = list(values)
    return sum(items) / len(items) if items else math.nan
