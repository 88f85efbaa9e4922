"""Wrapper of a sweep's Optuna study: ask for points and report how each of them ended."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sdm_ray.config import SearchSettings, SweepSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.sweep.search.makers import make, sampler_options
from sdm_ray.sweep.search.space import Space
from sdm_ray.tracking.address import masked

JOURNAL = "journal://"
"""URL prefix of a journal file."""
LEAST_FOR_IMPORTANCES = 10
"""Minimum number of completed trials for importances."""
BEST_SHARE, LEAST_BEST = 0.1, 8
"""Trials that importances compare with all trials: the best tenth, but (given 16 or more) no fewer than `LEAST_BEST`,
so that two points that are similar by chance do not dominate."""
SQLITE_SECONDS = 60
"""Timeout for a locked SQLite file."""


_P = ParamSpec("_P")
_T = TypeVar("_T")
_Method = Callable[Concatenate["SearchStudy", _P], _T]


def _in_a_sentence(method: _Method[_P, _T]) -> _Method[_P, _T]:
    """Decorate a method: a storage that fails, such as one on a full disk, raises a `RunError` that names it."""

    @functools.wraps(method)
    def call(self: SearchStudy, /, *args: _P.args, **options: _P.kwargs) -> _T:
        try:
            return method(self, *args, **options)
        except (optuna.exceptions.StorageInternalError, OSError) as error:
            raise RunError(f"Optuna's storage {self._storage}: {_reason(error)}") from error

    return call


def _reason(error: BaseException) -> str:
    """The database's own error in one line: Optuna's message only guesses, and SQLAlchemy's quotes the statement."""
    while type(error).__module__.startswith(("optuna.", "sqlalchemy.")) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200]


class SearchStudy:
    """Multi-objective Optuna study with a define-by-run search space.

    Args:
        study: the study.
        space: the space.
        storage: address of the study's storage, for messages.

    Raises:
        RunError: from every method, if the storage fails.
    """

    def __init__(self, study: optuna.Study, space: Space, storage: str = "") -> None:
        self._study = study
        self._space = space
        self._storage = storage
        self._asked: dict[int, optuna.trial.Trial] = {}

    @classmethod
    def open(
        cls,
        settings: SweepSettings,
        *,
        storage: str,
        name: str,
        create: bool,
        options: Mapping[str, Any] | None = None,
    ) -> SearchStudy:
        """Create or load the study.

        The sampler's seed depends on the number of recorded trials, so that a resumed search does not repeat the random
        draws of its first part.

        Args:
            settings: the sweep's settings.
            storage: URL of Optuna's storage.
            name: name of the study.
            create: whether to create the study; otherwise it is loaded.
            options: sampler options with which the sweep began; None uses those of a new sweep.

        Raises:
            UsageError: if the storage cannot be opened, lacks the study, or the study has other objectives.
        """
        directions = [objective.direction for objective in settings.objectives]
        try:
            backend = open_storage(storage)
            if create:
                study = optuna.create_study(storage=backend, study_name=name, directions=directions)
            else:
                study = optuna.load_study(storage=backend, study_name=name)
        except KeyError:
            raise UsageError(
                f"Optuna storage {masked(storage)} does not hold study {name!r}; was it moved or deleted?"
            ) from None
        except Exception as error:
            raise UsageError(f"Optuna storage {masked(storage)} cannot be used: {_reason(error)}") from None
        if [direction.name.lower() for direction in study.directions] != directions:
            raise UsageError(f"study {name!r} in {storage} has other objectives than this sweep")
        _name_metrics(study, [objective.metric for objective in settings.objectives])
        count = len(study.get_trials(deepcopy=False))
        study.sampler = make_sampler(settings.search, settings.seed, num_recorded=count, options=options)
        return cls(study, Space(settings.space), masked(storage))

    @_in_a_sentence
    def rebuild(self, points: Mapping[int, Mapping[str, Any]]) -> None:
        """Recreate the trials of a lost study in an empty one: RUNNING for the given numbers, failed for all others."""
        stored = self._space.stored()
        for number in range(max(points, default=-1) + 1):
            if number in points:
                encoded = self._space.encode(points[number])
                distributions = {path: stored[path] for path in encoded}
                trial = optuna.create_trial(state=TrialState.RUNNING, params=encoded, distributions=distributions)
            else:
                trial = optuna.create_trial(state=TrialState.FAIL)
            self._study.add_trial(trial)

    @_in_a_sentence
    def ask(self, point: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Ask for the next trial; returns its number and values by dotted path. `point` fixes some of the values."""
        if point:
            self._study.enqueue_trial(self._space.encode(point))
        trial = self._study.ask()
        self._asked[trial.number] = trial
        return trial.number, self._space.suggest(trial)

    @_in_a_sentence
    def tell(self, number: int, values: Sequence[float], *, violations: Mapping[str, float]) -> None:
        """Record a completed trial; a violation above 0 marks it infeasible.

        Infeasible trials are recorded as complete with a violated constraint, because samplers learn only from these.
        """
        if (trial := self._open(number)) is not None:
            for name, violation in violations.items():
                trial.set_constraint(name, violation)
            self._study.tell(trial, list(values))

    @_in_a_sentence
    def stop(self, number: int, *, violations: Mapping[str, float]) -> None:
        """Record an infeasible trial that ended without objectives.

        It is recorded as pruned, because a complete trial needs values; samplers still use its violated constraint.
        """
        if (trial := self._open(number)) is not None:
            for name, violation in violations.items():
                trial.set_constraint(name, violation)
            self._study.tell(trial, state=TrialState.PRUNED)

    @_in_a_sentence
    def fail(self, number: int) -> None:
        """Record a failed trial."""
        if (trial := self._open(number)) is not None:
            self._study.tell(trial, state=TrialState.FAIL)

    @_in_a_sentence
    def note(self, number: int, notes: Mapping[str, str]) -> None:
        """Set user attributes of a trial that has not ended in Optuna, for dashboards."""
        if (trial := self._open(number)) is not None:
            known = trial.user_attrs
            for name, value in notes.items():
                if known.get(name) != value:
                    trial.set_user_attr(name, value)
            self._asked[number] = trial

    @_in_a_sentence
    def note_sweep(self, notes: Mapping[str, str]) -> None:
        """Set user attributes of the study, for dashboards."""
        for name, value in notes.items():
            self._study.set_user_attr(name, value)

    @_in_a_sentence
    def pending(self) -> set[int]:
        """Numbers of trials in state RUNNING."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return {trial.number for trial in trials}

    @_in_a_sentence
    def learn(self, results: Iterable[tuple[Mapping[str, Any], Sequence[float], Mapping[str, float]]]) -> int:
        """Add completed trials of an earlier search, each as (params, values, violations); returns the number added.

        Trials that this space could not have sampled are skipped: with a value out of range, or without a value for an
        active setting.
        """
        stored, count = self._space.stored(), 0
        for params, values, violations in results:
            active = self._space.active(params)
            needed = {path for path in stored if self._space.is_active(path, active)}
            if needed != active.keys():
                continue
            try:
                encoded = self._space.encode(active)
            except UsageError:
                continue
            trial = optuna.create_trial(
                params=encoded,
                distributions={path: stored[path] for path in encoded},
                values=list(values),
                constraints=dict(violations),
            )
            self._study.add_trial(trial)
            count += 1
        return count

    @_in_a_sentence
    def reconcile(self, known: Collection[int]) -> int:
        """Fail unfinished trials that are not `known`, left by a killed driver; returns their number."""
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        for _ in waiting:  # enqueued but not asked for; Optuna refuses to fail a trial that has not begun
            self._study.ask()
        zombies = self.pending() - set(known)
        for number in sorted(zombies):
            self._study.tell(number, state=TrialState.FAIL)
        return len(zombies)

    @_in_a_sentence
    def importances(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Importance of each searched setting for each objective, by PED-ANOVA (arXiv 2304.10255).

        Importances sum to 1 for each objective. They compare the values in the best tenth of the trials (at least
        `LEAST_BEST`, at most half) with those in all trials. Empty below `LEAST_FOR_IMPORTANCES` completed trials.
        Conditional settings are omitted, because they have no value in some trials.

        Args:
            names: names of the objectives, in order.
        """
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        common = set.intersection(*(set(trial.params) for trial in complete)) if complete else set()
        if len(complete) < LEAST_FOR_IMPORTANCES or not common:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(
            target_quantile=max(BEST_SHARE, min(0.5, LEAST_BEST / len(complete)))
        )
        signs = [1.0 if direction is StudyDirection.MINIMIZE else -1.0 for direction in self._study.directions]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the evaluator warns that it assumes minimisation, which the signs ensure
            return {
                name: optuna.importance.get_param_importances(
                    self._study,
                    evaluator=evaluator,
                    params=sorted(common),
                    target=lambda trial, index=index: signs[index] * trial.values[index],
                )
                for index, name in enumerate(names)
            }

    def _open(self, number: int) -> optuna.trial.Trial | None:
        """Get a trial that has not ended in Optuna; None if it has."""
        trial = self._asked.pop(number, None)
        if trial is not None:
            return trial
        trials = self._study.get_trials(deepcopy=False)
        if number >= len(trials):
            raise RunError(f"Optuna's storage has lost trial {number}; restore it, or start under another name")
        if trials[number].state is not TrialState.RUNNING:
            return None
        return optuna.trial.Trial(self._study, trials[number]._trial_id)


def _name_metrics(study: optuna.Study, names: list[str]) -> None:
    """Set the names of a study's objectives for dashboards, unless they are set already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if study.metric_names != names:
            study.set_metric_names(names)


def make_sampler(
    search: SearchSettings, seed: int, *, num_recorded: int = 0, options: Mapping[str, Any] | None = None
) -> optuna.samplers.BaseSampler:
    """Create the seeded sampler of a search, with the options of a new sweep unless others are given."""
    seed = int(np.random.SeedSequence([seed, num_recorded]).generate_state(1)[0])
    chosen = sampler_options(search) if options is None else options
    made: optuna.samplers.BaseSampler = make(
        search.sampler, chosen, seed=seed, num_startup_trials=search.num_startup_trials
    )
    return made


def open_storage(storage: str) -> optuna.storages.BaseStorage:
    """Open Optuna's storage at a URL: `journal:///path` is a journal file, any other URL is one of SQLAlchemy.

    Raises:
        Exception: any exception of the storage if it cannot be opened.
    """
    if storage.startswith(JOURNAL):
        from optuna.storages.journal import JournalFileBackend

        path = Path(storage.removeprefix(JOURNAL))
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent}")
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    options = {"connect_args": {"timeout": SQLITE_SECONDS}} if storage.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(storage, engine_kwargs=options)
