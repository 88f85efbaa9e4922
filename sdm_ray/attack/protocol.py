"""Attack on one model: search on attacker-validation, re-run the winner on fresh seeds, score once on test.

The protocol follows Henderson et al. (arXiv 2211.14946) with three corrections: the search never sees test, the
headline is the worst case over families and the search at each n, re-estimated on fresh seeds, and a failed
fine-tune never counts as blocked.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Protocol

import torch
from torch import Tensor

from sdm_ray.attack.check import check_data, resolve_sizes
from sdm_ray.attack.engine.executor import Executor
from sdm_ray.attack.families import the_family
from sdm_ray.attack.families.base import Facts, Family
from sdm_ray.attack.families.composed import COMPOSED, missing_for_chains
from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.attack.fine_tunes import FineTunes, Runner, search_of
from sdm_ray.attack.portfolio import Portfolio, read_portfolio
from sdm_ray.attack.report import AttackRecord, AttackReport, Cell
from sdm_ray.attack.search import Search, bounded_cell, cell_of, drop_reruns, worst_cell
from sdm_ray.attack.space import SamplerFactory, the_sampler
from sdm_ray.config.attack import WALKING_BACK, AttackSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.data.interface import AttackDataset, known_positions
from sdm_ray.models.interface import TrunkLike

__all__ = ["AttackRecord", "AttackReport", "Cell", "attack_model"]


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
        params: released weights by name; not modified.
        data: attacker-train, attacker-validation and test are used, meta-training is not.
        settings: the attack.
        task: task whose labels the attacker learns.
        sampler: proposes search points; None takes the built-in sampler named in the settings.
        knowledge: further information of the attacker; families that need more are reported as not tried.
        runner: makes a runner that replaces this process.

    Yields:
        Progress in fine-tunes, between stacks.

    Raises:
        UsageError: if a split is too small for n or lacks a class, or if no family can be tried or one is unknown.
        RunError: if every fine-tune crashed.
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
        fine_tunes.expect(len(reruns))  # several per seed if readers form a committee
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
    """Whether each text of attacker-validation and of test has a two-token name; None if that is unknown."""
    known = known_positions(data)
    if known is None:
        return None
    val, test = (known[examples.indices, 1].cpu() >= 0 for examples in (executor.val, executor.test))
    return val, test


def _families(settings: AttackSettings, facts: Facts) -> tuple[list[Family], tuple[str, ...]]:
    """Families that can be tried on a model, and what the others need.

    Raises:
        UsageError: if there are none, or only those that use the public encoder.
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
    """Run all searches, scored on validation only."""
    while any(search.is_open for search in searches):
        open_ones = [search for search in searches if search.is_open]
        attackers = [attacker for search in open_ones for attacker in search.ask()]
        yield from fine_tunes.run(attackers, with_test=False)
        for search in open_ones:
            search.tell(fine_tunes.scored)
    fine_tunes.note_best({search.key: search.best_so_far() for search in searches})


def _portfolio_use(portfolio: Portfolio, searches: Sequence[Search], records: Sequence[AttackRecord]) -> dict[str, Any]:
    """Cost of the portfolio's entries, and where they won."""
    given = {search.key: len(search.given) for search in searches}
    own = [r for r in records if r.phase == "search" and r.trial < given[search_of(r)]]
    won = [f"{search.key.family} at n = {search.num_examples}" for search in searches if search.won_by_given]
    return {
        "name": portfolio.name,
        "num_points": sum(given.values()),
        "seconds": sum(record.seconds for record in own),
        "won": list(dict.fromkeys(won)),
    }


def _bounded(cells: Sequence[Cell], sizes: Sequence[int], least_desired: float) -> tuple[Cell, ...]:
    """The worst attack at each n that keeps the desired accuracy; empty unless there is one at every n."""
    found = [bounded_cell([cell for cell in cells if cell.num_examples == n], least_desired) for n in sizes]
    return tuple(cell for cell in found if cell is not None) if all(found) else ()


def _base_rate(data: AttackDataset, task: Task) -> float:
    """Share of the most frequent class on test."""
    labels = data.labels_host(task)[data.indices(Split.TEST)]
    counts = torch.bincount(labels, minlength=data.num_classes(task))
    return float(counts.max() / counts.sum())
