"""The Optuna study of a sweep: asked for points, and told the end of every one that it handed out."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sdm_ray.config import SearchSettings, SweepSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.sweep.search.makers import make, sampler_options
from sdm_ray.sweep.search.space import Space

JOURNAL = "journal://"
"""Begins the URL of a journal file."""
LEAST_FOR_IMPORTANCES = 10
"""Completed trials from which importances say anything."""
BEST_SHARE, LEAST_BEST = 0.1, 8
"""Trials that importances compare with all: the best tenth, and (of 16 or more) no fewer than this, or two points
that are alike by chance would decide."""
SQLITE_SECONDS = 60
"""How long a locked sqlite file is waited for."""


class SearchStudy:
    """A multi-objective study in storage; the space is define-by-run."""

    def __init__(self, study: optuna.Study, space: Space) -> None:
        self._study = study
        self._space = space
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
        """Create the study, or load it again.

        The sampler's seed depends on the number of trials that are there, so that a resumed search does not repeat
        the random draws of its first part.

        Args:
            settings: the sweep.
            storage: URL of Optuna's storage.
            name: of the study.
            create: whether it is new.
            options: of the sampler, as the sweep began with them; None takes those of a new one.

        Raises:
            UsageError: when the storage cannot be opened, or does not hold the study or holds another one.
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
                f"Optuna storage {storage} does not hold study {name!r}; was it moved or deleted?"
            ) from None
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"Optuna storage {storage} cannot be used: {reason}") from None
        if [direction.name.lower() for direction in study.directions] != directions:
            raise UsageError(f"study {name!r} in {storage} has other objectives than this sweep")
        _name_metrics(study, [objective.metric for objective in settings.objectives])
        count = len(study.get_trials(deepcopy=False))
        study.sampler = make_sampler(settings.search, settings.seed, num_recorded=count, options=options)
        return cls(study, Space(settings.space))

    def rebuild(self, points: Mapping[int, Mapping[str, Any]]) -> None:
        """Hand out again, in an empty study, what a lost one had handed out: params by number; other numbers failed."""
        stored = self._space.stored()
        for number in range(max(points, default=-1) + 1):
            if number in points:
                encoded = self._space.encode(points[number])
                distributions = {path: stored[path] for path in encoded}
                trial = optuna.create_trial(state=TrialState.RUNNING, params=encoded, distributions=distributions)
            else:
                trial = optuna.create_trial(state=TrialState.FAIL)
            self._study.add_trial(trial)

    def ask(self, point: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """The next trial's number and its values by dotted path; `point` fixes some of them."""
        if point:
            self._study.enqueue_trial(self._space.encode(point))
        trial = self._study.ask()
        self._asked[trial.number] = trial
        return trial.number, self._space.suggest(trial)

    def tell(self, number: int, values: Sequence[float], *, violations: Mapping[str, float]) -> None:
        """Record a completed trial; a violation above 0 marks it infeasible.

        An infeasible trial is recorded as completed with a violated constraint: samplers learn from nothing else.
        """
        if (trial := self._open(number)) is not None:
            for name, violation in violations.items():
                trial.set_constraint(name, violation)
            self._study.tell(trial, list(values))

    def stop(self, number: int, *, violations: Mapping[str, float]) -> None:
        """Record a trial that ended without objectives because it is infeasible.

        It is recorded as pruned, for a completed one needs values; with its violated constraint it still tells samplers
        where not to look.
        """
        if (trial := self._open(number)) is not None:
            for name, violation in violations.items():
                trial.set_constraint(name, violation)
            self._study.tell(trial, state=TrialState.PRUNED)

    def fail(self, number: int) -> None:
        """Record a failed trial."""
        if (trial := self._open(number)) is not None:
            self._study.tell(trial, state=TrialState.FAIL)

    def note(self, number: int, notes: Mapping[str, str]) -> None:
        """Note of a trial that has not been told what a dashboard shall show (`user_attrs`)."""
        if (trial := self._open(number)) is not None:
            known = trial.user_attrs
            for name, value in notes.items():
                if known.get(name) != value:
                    trial.set_user_attr(name, value)
            self._asked[number] = trial

    def note_sweep(self, notes: Mapping[str, str]) -> None:
        """Note of the whole study what a dashboard shall show."""
        for name, value in notes.items():
            self._study.set_user_attr(name, value)

    def pending(self) -> set[int]:
        """Numbers of trials that were handed out and whose end is not recorded."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return {trial.number for trial in trials}

    def learn(self, results: Iterable[tuple[Mapping[str, Any], Sequence[float], Mapping[str, float]]]) -> int:
        """Add completed trials of an earlier search: (params, values, violations) each; gives how many fitted.

        Left out is what this space could not have drawn: a value outside its range, a setting that it searches and the
        other did not.
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

    def importances(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """How much each searched setting decides whether an objective gets good, by PED-ANOVA (arXiv 2304.10255).

        Shares that sum to 1 for each objective: how the values of the best tenth of the trials (at least
        `LEAST_BEST`, at most half) differ from those of all. Empty below `LEAST_FOR_IMPORTANCES` completed trials.
        Conditional settings are left out: they have no value in some trials.

        Args:
            names: of the objectives, in their order.
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
            warnings.simplefilter("ignore")  # that it looks at low values, which the signs see to
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
        """A trial whose end can be recorded; None where that has been done."""
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
    """Name the objectives in a study, for dashboards, unless it has their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if study.metric_names != names:
            study.set_metric_names(names)


def make_sampler(
    search: SearchSettings, seed: int, *, num_recorded: int = 0, options: Mapping[str, Any] | None = None
) -> optuna.samplers.BaseSampler:
    """The sampler of a search, seeded; with the options that a new one gets, unless others are given."""
    seed = int(np.random.SeedSequence([seed, num_recorded]).generate_state(1)[0])
    chosen = sampler_options(search) if options is None else options
    made: optuna.samplers.BaseSampler = make(
        search.sampler, chosen, seed=seed, num_startup_trials=search.num_startup_trials
    )
    return made


def open_storage(storage: str) -> optuna.storages.BaseStorage:
    """Optuna's storage of a URL: `journal:///path` is a file that many processes append to, others are SQLAlchemy's.

    Raises:
        Exception: of whatever kind the storage raises when it cannot be opened.
    """
    if storage.startswith(JOURNAL):
        from optuna.storages.journal import JournalFileBackend

        path = Path(storage.removeprefix(JOURNAL))
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent}")
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    options = {"connect_args": {"timeout": SQLITE_SECONDS}} if storage.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(storage, engine_kwargs=options)
