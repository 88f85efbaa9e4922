"""Runs the fine-tunes of an attack, retries failed ones once, scores and records them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from sdm_ray.attack.committee import vote
from sdm_ray.attack.engine.executor import retry_of
from sdm_ray.attack.engine.outcome import Outcome
from sdm_ray.attack.engine.scoring import ScoringSet
from sdm_ray.attack.families.base import Attacker
from sdm_ray.attack.families.token_probe import NAME as TOKEN_PROBE
from sdm_ray.attack.report import AttackRecord
from sdm_ray.attack.scores import evaluate, fit_calibration, permuted_accuracy, raw_accuracy
from sdm_ray.attack.search import Scored, SearchKey
from sdm_ray.core.errors import RunError
from sdm_ray.core.progress import Progress


class Runner(Protocol):
    """Runs batches of attackers, in this process or elsewhere."""

    def run(self, attackers: Sequence[Attacker], *, with_test: bool) -> Iterator[list[Outcome]]:
        """Yield outcomes in parts; every attacker occurs once."""
        ...

    def close(self) -> None:
        """Release processes and memory."""


class FineTunes:
    """Runs attackers, retries failed ones once, and records every fine-tune.

    Args:
        runner: runs the attackers.
        val: attacker-validation in the order of the outcomes' logits.
        test: test, likewise.
        total: total number of fine-tunes.
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
        """Re-runs of committee members, by search and seed."""
        self.records: list[AttackRecord] = []
        self.scored: Scored = defaultdict(list)

    def expect(self, count: int) -> None:
        """Set the number of remaining fine-tunes."""
        self._total = self._done + count

    def run(self, attackers: Sequence[Attacker], *, with_test: bool) -> Generator[Progress, None, None]:
        """Run attackers and retry failed ones."""
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
            dataclasses.replace(record, best_so_far=curves[search_of(record)][record.trial])
            if record.phase == "search"
            else record
            for record in self.records
        ]

    def check_any_finished(self) -> None:
        """Raise `RunError` if every fine-tune crashed."""
        crashed = [record.error for record in self.records if record.status == "crashed"]
        if len(crashed) == len(self.records):
            raise RunError(f"attack: every fine-tune crashed; the first one said: {crashed[0]}")

    def _keep(self, record: AttackRecord) -> None:
        self.records.append(record)
        if record.status == "ok":
            self.scored[record.phase, search_of(record)].append(record)

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


def search_of(record: AttackRecord) -> SearchKey:
    return SearchKey(record.family, record.num_examples, record.repeat)


def _deserves_a_retry(outcome: Outcome) -> bool:
    """Whether a fine-tune failed at its first attempt; one that timed out would take as long again."""
    return outcome.status != "ok" and outcome.attacker.attempt == 0 and not outcome.timed_out
