"""The attack on one model: search on attacker-validation, re-run the winner on fresh seeds, score once on test.

The protocol follows Henderson et al. (arXiv 2211.14946) with three corrections: the search never sees test, the
headline is the worst case over families and the search at each n, re-estimated on fresh seeds, and a fine-tune that
failed never counts as blocked.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

import torch
from torch import Tensor

from sdm_ray.attack.check import check_data, resolve_sizes
from sdm_ray.attack.committee import vote
from sdm_ray.attack.engine.executor import Executor, retry_of
from sdm_ray.attack.engine.outcome import Outcome
from sdm_ray.attack.engine.scoring import ScoringSet
from sdm_ray.attack.families import the_family
from sdm_ray.attack.families.base import Attacker, Facts, Family
from sdm_ray.attack.families.composed import COMPOSED, missing_for_chains
from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.attack.families.token_probe import NAME as TOKEN_PROBE
from sdm_ray.attack.portfolio import Portfolio, read_portfolio
from sdm_ray.attack.report import AttackRecord, AttackReport, Cell
from sdm_ray.attack.scores import evaluate, fit_calibration, permuted_accuracy, raw_accuracy
from sdm_ray.attack.search import Scored, Search, SearchKey, bounded_cell, cell_of, drop_reruns, worst_cell
from sdm_ray.attack.space import SamplerFactory, the_sampler
from sdm_ray.config.attack import WALKING_BACK, AttackSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.data.interface import AttackDataset, known_positions
from sdm_ray.models.interface import TrunkLike

__all__ = ["AttackRecord", "AttackReport", "Cell", "attack_model"]


class Runner(Protocol):
    """Runs attackers somewhere, batch after batch."""

    def run(self, attackers: Sequence[Attacker], *, with_test: bool) -> Iterator[list[Outcome]]:
        """Outcomes part by part, every attacker once."""
        ...

    def close(self) -> None:
        """Let go of processes and memory."""


class RunnerFactory(Protocol):
    """Makes a runner for one model; the arguments are those of `Executor`."""

    def __call__(
        self,
        trunk: TrunkLike,
        params: Params,
        data: AttackDataset,
        settings: AttackSettings,
        task: Task,
        knowledge: Knowledge | None,
    ) -> Runner: ...


def attack_model(
    trunk: TrunkLike,
    params: Params,
    data: AttackDataset,
    settings: AttackSettings,
    *,
    task: Task = Task.HARMFUL,
    sampler: SamplerFactory | None = None,
    knowledge: Knowledge | None = None,
    runner: RunnerFactory | None = None,
) -> Generator[Progress, None, AttackReport]:
    """Attack one released model.

    Args:
        trunk: the architecture.
        params: released weights by name; left as they are.
        data: attacker-train, attacker-validation and test are used, meta-training is not.
        settings: the attack.
        task: whose labels the attacker learns.
        sampler: proposes search points; None takes the built-in one that the settings name.
        knowledge: what else the attacker has; families that need more are listed as not tried.
        runner: makes what runs the fine-tunes in place of this process.

    Yields:
        Progress in fine-tunes, between two stacks of them.

    Raises:
        UsageError: when a split is too small for n, or lacks a class; for an unknown family, or none that can be tried.
        RunError: when every fine-tune crashed.
    """
    started = time.perf_counter()
    check_data(data, settings, task)
    sampler = sampler or the_sampler(settings.sampler)
    executor = Executor(trunk, params, data, settings, task, knowledge)
    facts, portfolio = executor.facts, read_portfolio(settings.portfolio)
    families, not_tried = _families(settings, facts)
    sizes = resolve_sizes(settings.num_examples, data)
    cells = [
        [
            Search(family, n, repeat, settings, executor.facts, sampler, portfolio.attackers(family.name, n, facts))
            for repeat in range(settings.num_searches)
        ]
        for n in sizes
        for family in families
    ]
    searches = [search for repeats in cells for search in repeats]
    total = sum(search.num_attackers for search in searches)
    if settings.shares_search:
        total -= len(sizes) * settings.num_searches * settings.num_rerun_seeds
    with closing(executor if runner is None else runner(trunk, params, data, settings, task, knowledge)) as running:
        fine_tunes = FineTunes(running, executor.val, executor.test, total, _kinds(data, executor))
        yield from _search(searches, fine_tunes)
        drop_reruns(cells, settings)
        reruns = [rerun for search in searches for rerun in search.reruns()]
        fine_tunes.expect(len(reruns))  # several for one where readers vote
        yield from fine_tunes.run(reruns, with_test=True)
    fine_tunes.check_any_finished()
    family_cells = [cell_of(repeats, fine_tunes.scored, settings) for repeats in cells]
    back = [cell for cell in family_cells if cell.family in WALKING_BACK]
    attacks = [cell for cell in family_cells if cell.family not in WALKING_BACK]
    return AttackReport(
        settings=settings.identity(),
        data_digest=data.digest,
        num_classes=data.num_classes(task),
        base_rate=_base_rate(data, task),
        num_validation=len(executor.val),
        num_test=len(executor.test),
        seconds=time.perf_counter() - started,
        cells=tuple(worst_cell([cell for cell in attacks if cell.num_examples == n]) for n in sizes),
        bounded=_bounded(attacks, sizes, settings.utility_share * executor.desired_accuracy()),
        walking_back=tuple(worst_cell(here) for n in sizes if (here := [c for c in back if c.num_examples == n])),
        family_cells=tuple(family_cells),
        not_tried=not_tried,
        records=fine_tunes.records,
        portfolio=_portfolio_use(portfolio, searches, fine_tunes.records) if settings.portfolio else {},
    )


def _kinds(data: AttackDataset, executor: Executor) -> tuple[Tensor, Tensor] | None:
    """Whether each text of attacker-validation and of test names somebody by two tokens; None where it is not known."""
    known = known_positions(data)
    if known is None:
        return None
    val, test = (known[examples.indices, 1].cpu() >= 0 for examples in (executor.val, executor.test))
    return val, test


def _families(settings: AttackSettings, facts: Facts) -> tuple[list[Family], tuple[str, ...]]:
    """The families that can be tried on a model, and what the others need.

    Raises:
        UsageError: where there are none, or none but those that walk back to the public encoder.
    """
    asked = [the_family(name) for name in settings.families]
    lacking = {family.name: family.missing(facts) for family in asked}
    if COMPOSED.name in lacking:
        lacking[COMPOSED.name] = missing_for_chains(settings.edit_chains, facts)
    not_tried = tuple(f"{name} (needs {missing})" for name, missing in lacking.items() if missing)
    families = [family for family in asked if not lacking[family.name]]
    if not families:
        raise UsageError(f"attack.families: none can be tried on this model: {'; '.join(not_tried)}")
    if all(family.name in WALKING_BACK for family in families):
        names = ", ".join(family.name for family in families)
        raise UsageError(
            f"attack.families: {names} need the public encoder and are reported apart, which leaves no attack; add "
            "another family"
        )
    return families, not_tried


def _search(searches: Sequence[Search], fine_tunes: FineTunes) -> Generator[Progress, None, None]:
    """Run all searches to their ends, scored on validation alone."""
    while any(search.is_open for search in searches):
        open_ones = [search for search in searches if search.is_open]
        attackers = [attacker for search in open_ones for attacker in search.ask()]
        yield from fine_tunes.run(attackers, with_test=False)
        for search in open_ones:
            search.tell(fine_tunes.scored)
    fine_tunes.note_best({search.key: search.best_so_far() for search in searches})


def _portfolio_use(portfolio: Portfolio, searches: Sequence[Search], records: Sequence[AttackRecord]) -> dict[str, Any]:
    """What the winners of earlier searches cost, and where one of them won again."""
    given = {search.key: len(search.given) for search in searches}
    own = [r for r in records if r.phase == "search" and r.trial < given[_search_of(r)]]
    won = [f"{search.key.family} at n = {search.num_examples}" for search in searches if search.won_by_given]
    return {
        "name": portfolio.name,
        "num_points": sum(given.values()),
        "seconds": sum(record.seconds for record in own),
        "won": list(dict.fromkeys(won)),
    }


def _bounded(cells: Sequence[Cell], sizes: Sequence[int], least_desired: float) -> tuple[Cell, ...]:
    """The worst at each n of the attacks that keep a desired accuracy; empty unless there is one at every n."""
    found = [bounded_cell([cell for cell in cells if cell.num_examples == n], least_desired) for n in sizes]
    return tuple(cell for cell in found if cell is not None) if all(found) else ()


def _base_rate(data: AttackDataset, task: Task) -> float:
    """Share of the commonest class on test."""
    labels = data.labels_host(task)[data.indices(Split.TEST)]
    counts = torch.bincount(labels, minlength=data.num_classes(task))
    return float(counts.max() / counts.sum())


class FineTunes:
    """Runs attackers, tries those that fail once more, and keeps a record of every fine-tune.

    Args:
        runner: runs them.
        val: attacker-validation in the order of the outcomes' logits.
        test: likewise.
        total: fine-tunes to be run in all.
        kinds: see `vote`.
    """

    def __init__(
        self,
        runner: Runner,
        val: ScoringSet,
        test: ScoringSet,
        total: int,
        kinds: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._kinds = kinds
        self._runner, self._val, self._test, self._done, self._total = runner, val, test, 0, total
        self._members: dict[tuple[SearchKey, int], list[Outcome]] = defaultdict(list)
        """Re-runs of committees' members, by search and seed."""
        self.records: list[AttackRecord] = []
        self.scored: Scored = defaultdict(list)

    def expect(self, count: int) -> None:
        """Only so many fine-tunes are left."""
        self._total = self._done + count

    def run(self, attackers: Sequence[Attacker], *, with_test: bool) -> Generator[Progress, None, None]:
        """Run attackers and the retries of those that failed."""
        while attackers:
            retries: list[Attacker] = []
            for outcomes in self._runner.run(attackers, with_test=with_test):
                for outcome in outcomes:
                    attacker = outcome.attacker
                    if with_test and attacker.probe == TOKEN_PROBE and outcome.status == "ok":
                        key = SearchKey(attacker.family, attacker.num_examples, attacker.repeat)
                        self._members[key, attacker.seed_index].append(outcome)
                    else:
                        self._keep(self._record(outcome))
                again = [retry_of(outcome.attacker) for outcome in outcomes if _deserves_a_retry(outcome)]
                retries += again
                self._done += len(outcomes) - len(again)
                yield Progress("attack", self._done, self._total, {})
            attackers = retries
        for members in self._members.values():
            self._keep(self._record(vote(members, self._val.labels, self._kinds)))
        self._members.clear()

    def note_best(self, curves: Mapping[SearchKey, Sequence[float]]) -> None:
        """Write the best-so-far curve of each search into its records."""
        self.records = [
            dataclasses.replace(record, best_so_far=curves[_search_of(record)][record.trial])
            if record.phase == "search"
            else record
            for record in self.records
        ]

    def check_any_finished(self) -> None:
        """Raise `RunError` where every fine-tune crashed."""
        crashed = [record.error for record in self.records if record.status == "crashed"]
        if len(crashed) == len(self.records):
            raise RunError(f"attack: every fine-tune crashed; the first one said: {crashed[0]}")

    def _keep(self, record: AttackRecord) -> None:
        self.records.append(record)
        if record.status == "ok":
            self.scored[record.phase, _search_of(record)].append(record)

    def _record(self, outcome: Outcome) -> AttackRecord:
        attacker, labels = outcome.attacker, self._val.labels
        record = AttackRecord(
            **dataclasses.asdict(attacker),
            status=outcome.status,
            examples_seen=attacker.num_steps * attacker.batch_size or attacker.num_examples,
            seconds=outcome.seconds,
            flops=outcome.flops,
            curve_steps=outcome.evaluated_steps,
            train_loss_curve=outcome.train_losses,
            desired_accuracy=outcome.desired_accuracy,
            error=outcome.error,
        )
        if outcome.status != "ok" or outcome.val_logits is None:
            return record
        calibration = fit_calibration(outcome.val_logits, labels)
        val = evaluate(outcome.val_logits, labels, calibration)
        scores: dict[str, Any] = {"val_accuracy": val.accuracy, "val_loss": val.loss}
        scores["val_raw_accuracy"] = raw_accuracy(outcome.val_logits, labels)
        if outcome.val_curve_logits:
            curve = tuple(permuted_accuracy(logits, labels) for logits in outcome.val_curve_logits)
            scores["val_accuracy_curve"] = (*curve, val.accuracy)
        if outcome.test_logits is not None:
            test = evaluate(outcome.test_logits, self._test.labels, calibration)
            scores |= {f"test_{name}": value for name, value in test._asdict().items()}
        permutation = " ".join(map(str, calibration.permutation))
        return dataclasses.replace(record, permutation=permutation, logit_scale=calibration.scale, **scores)


def _search_of(record: AttackRecord) -> SearchKey:
    return SearchKey(record.family, record.num_examples, record.repeat)


def _deserves_a_retry(outcome: Outcome) -> bool:
    """Whether a fine-tune failed at its first attempt; one that timed out would take as long again."""
    return outcome.status != "ok" and outcome.attacker.attempt == 0 and not outcome.timed_out
