"""Optuna behind five verbs: ask, tell, stop, fail, reconcile. Every trial that it hands out is told about."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from sdm_ray.config import SearchSettings, SweepSettings
from sdm_ray.errors import RunError, UsageError
from sdm_ray.sweep.space import Space

CONSTRAINT = "feasible"
"""Name of the one constraint: at most 0 where a trial is feasible."""


class SearchStudy:
    """A multi-objective study in storage; the space is define-by-run."""

    def __init__(self, study: optuna.Study, space: Space) -> None:
        self._study = study
        self._space = space
        self._asked: dict[int, optuna.trial.Trial] = {}

    @classmethod
    def open(cls, settings: SweepSettings, *, storage: str, name: str, create: bool) -> SearchStudy:
        """Create the study, or load it again.

        The sampler's seed depends on the number of trials that are there, so that a resumed search does not repeat
        the random draws of its first part.

        Raises:
            UsageError: when the storage cannot be opened, or does not hold the study or holds another one.
        """
        directions = [objective.direction for objective in settings.objectives]
        try:
            backend = optuna.storages.RDBStorage(storage, engine_kwargs=_engine_options(storage))
            if create:
                study = optuna.create_study(storage=backend, study_name=name, directions=directions)
            else:
                study = optuna.load_study(storage=backend, study_name=name)
        except KeyError:
            raise UsageError(
                f"Optuna storage {storage} does not hold study {name!r}; was it moved or deleted?"
            ) from None
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"Optuna storage {storage} cannot be used: {reason}") from None
        if [direction.name.lower() for direction in study.directions] != directions:
            raise UsageError(f"study {name!r} in {storage} has other objectives than this sweep")
        study.sampler = make_sampler(settings.search, settings.seed, num_told=len(study.get_trials(deepcopy=False)))
        return cls(study, Space(settings.space))

    def ask(self, point: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """The next trial's number and its values by dotted path; `point` fixes some of them."""
        if point:
            self._study.enqueue_trial(self._space.encode(point))
        trial = self._study.ask()
        self._asked[trial.number] = trial
        return trial.number, self._space.suggest(trial)

    def tell(self, number: int, values: Sequence[float], *, violation: float | None) -> None:
        """Record a completed trial; `violation` above 0 marks it infeasible, None leaves constraints out of the study.

        An infeasible trial is told as completed with a violated constraint, because samplers learn from nothing else.
        """
        if self._state(number) is not TrialState.RUNNING:
            return
        trial = self._asked.pop(number, None)
        if violation is not None:
            (trial or self._adopt(number)).set_constraint(CONSTRAINT, violation)
        self._study.tell(number, list(values))

    def stop(self, number: int, *, violation: float) -> None:
        """Record a trial that ended without objectives because it is infeasible.

        It is told as pruned, for a completed one needs values; with its violated constraint it still tells samplers
        where not to look.
        """
        if self._state(number) is not TrialState.RUNNING:
            return
        trial = self._asked.pop(number, None) or self._adopt(number)
        trial.set_constraint(CONSTRAINT, violation)
        self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int) -> None:
        """Record a failed trial."""
        if self._state(number) is TrialState.RUNNING:
            self._asked.pop(number, None)
            self._study.tell(number, state=TrialState.FAIL)

    def reconcile(self, known: Collection[int]) -> int:
        """Fail every unfinished trial that is not `known`, as a killed driver leaves them; returns how many."""
        zombies = [
            trial.number
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
            if trial.number not in known
        ]
        for number in zombies:
            self._study.tell(number, state=TrialState.FAIL)
        return len(zombies)

    def states(self) -> list[str]:
        """Optuna's state of every trial, by number."""
        return [trial.state.name for trial in self._study.get_trials(deepcopy=False)]

    def _state(self, number: int) -> TrialState:
        return self._frozen(number).state

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        trials = self._study.get_trials(deepcopy=False)
        if number >= len(trials):
            raise RunError(f"Optuna's storage has lost trial {number}; restore it, or start under another name")
        return trials[number]

    def _adopt(self, number: int) -> optuna.trial.Trial:
        return optuna.trial.Trial(self._study, self._frozen(number)._trial_id)


def make_sampler(search: SearchSettings, seed: int, *, num_told: int = 0) -> optuna.samplers.BaseSampler:
    """Optuna's sampler of that name, seeded.

    NSGA-II's population is a quarter of the trials (4 to 50), so that a short search has generations at all.
    """
    seed = int(np.random.SeedSequence([seed, num_told]).generate_state(1)[0])
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if search.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=min(50, max(4, search.num_trials // 4)))
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=search.num_startup_trials)


def _engine_options(storage: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}
