"""The attacker's search within a family at one n, on validation scores only, and the re-runs of its winner."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from sdm_ray.attack.families import the_family
from sdm_ray.attack.families.base import Attacker, Facts, Family, Phase
from sdm_ray.attack.report import NOT_RERUN, AttackRecord, Cell, Winner, is_flat, units
from sdm_ray.attack.space import Alternating, DesignedSampler, Point, Sampler, SamplerFactory
from sdm_ray.config.attack import SHARING, AttackSettings
from sdm_ray.core.seeds import derived_seed
from sdm_ray.core.statistics import mean, t_interval

COMMITTEE = 10
"""Most token readers in a committee: validation has few names, so selecting a single reader would overfit."""
ALIKE = 0.2
"""Largest difference in validation loss between a committee member and the best reader."""


class SearchKey(NamedTuple):
    """Identifies the search of a fine-tune."""

    family: str
    num_examples: int
    repeat: int
    """Repetition of the search, from 0."""


Scored = dict[tuple[Phase, SearchKey], list[AttackRecord]]
"""Finished records by phase and search."""


class Search:
    """One repetition of a family's search at one n.

    Args:
        family: the family.
        num_examples: n.
        repeat: index of the repetition.
        settings: budget and ranges.
        facts: information about the model for the family.
        sampler: proposes points.
        given: first attackers of the search; they count towards its number of points.
    """

    def __init__(
        self,
        family: Family,
        num_examples: int,
        repeat: int,
        settings: AttackSettings,
        facts: Facts,
        sampler: SamplerFactory,
        given: Sequence[Attacker] = (),
    ) -> None:
        self._family, self.num_examples, self.repeat, self._settings = family, num_examples, repeat, settings
        again = (repeat,) if repeat else ()
        # Families that share a budget also share one sequence of points, and together cover the space as one would.
        shares = settings.shares_search and family.name in SHARING and settings.sampler == "sobol"
        label = SHARING[0] if shares else family.name
        seed = derived_seed(settings.seed, "search", label, num_examples, *again)
        self._num_trials = settings.search_trials(family.name)
        self._num_seeds = settings.search_seeds(family.name)
        self.reruns_wanted = True
        """Whether the winner is re-run; false if a family that shares the budget did better."""
        space = the_family(SHARING[1] if shares else family.name).space(settings, num_examples, facts)
        if family.design is not None:
            self._sampler: Sampler = DesignedSampler(space, seed, family.design(settings, num_examples, facts))
        elif shares:
            self._sampler = Alternating(sampler(space, seed), SHARING.index(family.name))
        else:
            self._sampler = sampler(space, seed)
        # At most half of the points come from the portfolio, because new points may be stronger.
        self.given = tuple(given[: max(1, self._num_trials // 2)])
        self._points: list[Point] = [{} for _ in self.given]
        self._num_scored = len(self.given)
        self._running: list[int] = []
        """Trials with unfinished seeds."""
        self._seeds_asked = 0
        self._scores: list[tuple[float, float]] = []
        """(accuracy, negative loss) of each point, larger is better; NaN for failed points."""
        self._finalists: set[int] = set()

    @property
    def key(self) -> SearchKey:
        """Key of this search."""
        return SearchKey(self._family.name, self.num_examples, self.repeat)

    @property
    def is_open(self) -> bool:
        """Whether points remain to be proposed."""
        return bool(self._running) or len(self._scores) < self._num_trials

    @property
    def num_attackers(self) -> int:
        """Number of fine-tunes of the search, including re-runs."""
        settings, count, total = self._settings, self._num_trials, 0
        for _ in range(self._num_seeds):
            total += count
            count = max(1, count // 2) if settings.halving else count
        return total + settings.num_rerun_seeds

    def ask(self) -> list[Attacker]:
        """Fine-tunes of the sampler's next points, or of the next seed of the points left by successive halving."""
        if not self._running:
            first = len(self._points) if self._scores else 0
            self._points += self._ask(self._num_trials - len(self._points))
            self._running, self._seeds_asked = list(range(first, len(self._points))), 0
        wanted = 1 if self._settings.halving else self._num_seeds
        seeds = range(self._seeds_asked, self._seeds_asked + wanted)
        self._seeds_asked += wanted
        return [self._attacker(trial, seed) for trial in self._running for seed in seeds]

    def _ask(self, num: int) -> list[Point]:
        return self._sampler.ask(num) if num else []

    def tell(self, scored: Scored) -> None:
        """Take the scores of fine-tunes from `ask`, and pass those of finished points to the sampler."""
        records = scored.get(("search", self.key), [])
        self._scores += [(math.nan, math.nan)] * (len(self._points) - len(self._scores))
        for trial in self._running:
            self._scores[trial] = self._score([record for record in records if record.trial == trial])
        if self._seeds_asked < self._num_seeds:
            known = [trial for trial in self._running if not math.isnan(self._scores[trial][0])]
            known.sort(key=lambda trial: self._scores[trial], reverse=True)
            self._running = known[: max(1, len(self._running) // 2)]
        else:
            self._finalists |= set(self._running)
            self._running = []
        if not self._running:
            fresh = range(self._num_scored, len(self._points))
            self._sampler.tell([self._points[i] for i in fresh], [self._scores[i][0] for i in fresh])
            self._num_scored = len(self._points)

    def reruns(self) -> list[Attacker]:
        """Winner or winning committee on fresh seeds; empty if every point failed or no re-runs are wanted."""
        if not self.reruns_wanted:
            return []
        seeds, trials = range(self._settings.num_rerun_seeds), self._best_trials()
        return [dataclasses.replace(self._attacker(trial, seed), phase="rerun") for trial in trials for seed in seeds]

    def best_so_far(self) -> list[float]:
        """Best mean validation accuracy after each point; NaN before the first finished point."""
        best: list[float] = []
        for accuracy, _ in self._scores:
            best.append(max((value for value in (*best[-1:], accuracy) if not math.isnan(value)), default=math.nan))
        return best

    def winner(self) -> Winner | None:
        """The best point; None if every point failed."""
        trial = self._best_trial()
        if trial is None:
            return None
        return Winner(**dataclasses.asdict(self._attacker(trial, 0)), val_accuracy=self._scores[trial][0])

    def best_score(self) -> tuple[float, float]:
        """(accuracy, negative loss) of the best point on validation; minus infinity if every point failed."""
        trial = self._best_trial()
        return (-math.inf, -math.inf) if trial is None else self._scores[trial]

    @property
    def won_by_given(self) -> bool:
        """Whether the best point is one of `given`."""
        trial = self._best_trial()
        return trial is not None and trial < len(self.given)

    def accuracies(self) -> list[float]:
        """Validation accuracies of finished points."""
        return [accuracy for accuracy, _ in self._scores if not math.isnan(accuracy)]

    def _score(self, records: Sequence[AttackRecord]) -> tuple[float, float]:
        if not records or self._seeds_asked - len(records) > self._settings.max_failed_share * self._seeds_asked:
            return math.nan, math.nan
        return mean(r.val_accuracy for r in records), -mean(r.val_loss for r in records)

    def _attacker(self, trial: int, seed_index: int) -> Attacker:
        if trial < len(self.given):
            attacker = self.given[trial]
        else:
            attacker = self._family.attacker(self._points[trial], self.num_examples)
        return dataclasses.replace(attacker, trial=trial, seed_index=seed_index, repeat=self.repeat)

    def _best_trial(self) -> int | None:
        return next(iter(self._best_trials()), None)

    def _best_trials(self) -> list[int]:
        """The winner, or the committee members, best first."""
        trials = [trial for trial in sorted(self._finalists) if not math.isnan(self._scores[trial][0])]
        if self._family.design is None:
            return sorted(trials, key=lambda trial: self._scores[trial], reverse=True)[:1]
        # Accuracies of readers differ by a few names only; the loss over all names is more informative.
        trials.sort(key=lambda trial: self._scores[trial][1], reverse=True)
        return [trial for trial in trials if self._scores[trial][1] >= self._scores[trials[0]][1] - ALIKE][:COMMITTEE]


def drop_reruns(cells: Sequence[Sequence[Search]], settings: AttackSettings) -> None:
    """At each n, re-run only the better one of the families that share a budget.

    Args:
        cells: finished repetitions of each family at each n.
        settings: whether a budget is shared.
    """
    if not settings.shares_search:
        return
    sharing = [searches for searches in cells if searches[0].key.family in SHARING]
    for n in {searches[0].num_examples for searches in sharing}:
        here = [searches for searches in sharing if searches[0].num_examples == n]
        best = max(here, key=lambda searches: _mean_scores([search.best_score() for search in searches]))
        for searches in here:
            for search in searches:
                search.reruns_wanted = searches is best


def _mean_scores(scores: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    return tuple(sum(values) / len(values) for values in zip(*scores, strict=True))


def cell_of(searches: Sequence[Search], scored: Scored, settings: AttackSettings) -> Cell:
    """Result of a family at one n.

    Args:
        searches: its repetitions.
        scored: all finished records.
        settings: number of re-runs that may be missing.
    """
    by_seed: dict[tuple[int, int], AttackRecord] = {}
    for search in searches:
        for record in scored.get(("rerun", search.key), []):
            by_seed[search.repeat, record.seed_index] = record
    seeds = [(search.repeat, seed) for search in searches for seed in range(settings.num_rerun_seeds)]
    missing = len(seeds) - len(by_seed)
    reason = ""
    if not any(search.accuracies() for search in searches):
        reason = "every search point crashed or diverged"
    elif not searches[0].reruns_wanted:
        reason = NOT_RERUN
    elif missing > settings.max_failed_share * len(seeds) or not by_seed:
        reason = f"{missing} of {len(seeds)} re-runs crashed or diverged twice"
    used = [] if reason else list(by_seed.values())
    accuracies = tuple(by_seed[seed].test_accuracy if seed in by_seed else math.nan for seed in seeds)
    low, high = t_interval([value for value in units(accuracies, len(searches)) if not math.isnan(value)])
    curves = [search.best_so_far() for search in searches]
    best = tuple(mean(value for value in values if not math.isnan(value)) for values in zip(*curves, strict=True))
    key = searches[0].key
    return Cell(
        num_examples=key.num_examples,
        family=key.family,
        valid=not reason,
        reason=reason,
        winner=searches[0].winner(),
        accuracy=mean(r.test_accuracy for r in used),
        accuracy_low=max(low, 0.0) if used else math.nan,
        accuracy_high=min(high, 1.0) if used else math.nan,
        plain_accuracy=mean(r.test_plain_accuracy for r in used),
        macro_f1=mean(r.test_macro_f1 for r in used),
        loss=mean(r.test_loss for r in used),
        raw_loss=mean(r.test_raw_loss for r in used),
        mutual_information=mean(r.test_mutual_information for r in used),
        val_accuracy=mean(r.val_accuracy for r in used),
        seed_accuracies=accuracies,
        seed_losses=tuple(by_seed[seed].test_loss if seed in by_seed else math.nan for seed in seeds),
        num_missing=missing if reason != NOT_RERUN else 0,
        mean_search_accuracy=mean(value for search in searches for value in search.accuracies()),
        best_so_far=best,
        flattened=is_flat(best),
        desired_accuracy=mean(values)
        if not any(map(math.isnan, values := [r.desired_accuracy for r in used]))
        else math.nan,
    )


def bounded_cell(cells: Sequence[Cell], least_desired: float) -> Cell | None:
    """The worst cell whose attacked models keep a desired accuracy; None if there is none."""
    useful = [cell for cell in cells if cell.valid and cell.desired_accuracy >= least_desired]
    return worst_cell(useful) if useful else None


def worst_cell(cells: Sequence[Cell]) -> Cell:
    """The most successful family at an n, selected by the validation accuracy of its re-runs, not by test.

    An invalid cell never wins; if all are invalid, so is the result.
    """
    valid = [cell for cell in cells if cell.valid]
    return max(valid, key=lambda cell: (cell.val_accuracy, -cell.loss), default=cells[0])
