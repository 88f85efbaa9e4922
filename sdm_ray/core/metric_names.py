"""The names of all metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any

OWN_METRICS: dict[str, Callable[[Any], float]] = {}
"""Metrics that a user's modules register, by name, to the functions that measure them (`trial.own_metrics`)."""
_HARMFUL_ACCURACY = re.compile(r"harmful/n(\d+)/accuracy")


class Metric(StrEnum):
    """Names of logged metrics. Accuracies are shares in [0, 1], losses are in nats."""

    TRAIN_STEP = "train/step"
    """Outer steps done: the axis of training curves, not a measurement."""
    TRAIN_SPEED = "train/steps_per_second"
    TRAIN_TEXT_SPEED = "train/texts_per_second"
    """Of a distillation."""
    TRAIN_SECONDS_LEFT = "train/seconds_left"
    VALIDATION_ACCURACY = "validation/desired_accuracy"
    """On meta-training examples that are held out, while training."""
    VALIDATION_LOSS = "validation/desired_loss"
    DESIRED_ACCURACY = "desired/accuracy"
    DESIRED_LOSS = "desired/loss"
    HARMFUL_WORST_ACCURACY = "harmful/worst_accuracy"
    """Mean over n of the worst case over the attacker's search at each n: what a sweep minimises."""
    HARMFUL_MEAN_ACCURACY = "harmful/mean_accuracy"
    """Mean over n and over the search points that finished, on attacker-validation; secondary."""
    HARMFUL_BASE_RATE = "harmful/base_rate"
    REGRET_ACCURACY = "regret/accuracy"
    REGRET_LOSS = "regret/loss"
    RECOVERED_SHARE = "recovered/share"
    """Mean over n of the share of the undefended encoder's head start that an attack recovers."""
    KEPT_HARMFUL = "kept/harmful"
    """Head start kept on the harmful task: (accuracy of the model - that of `scratch`) / (accuracy of the undefended
    encoder - that of `scratch`), under the same attack, mean over n. 0 blocks, 1 blocks nothing."""
    KEPT_DESIRED = "kept/desired"
    """The same for few-shot learning of the desired task."""
    KEPT_BENIGN = "kept/benign"
    """The same for few-shot learning of tasks that no training saw, mean over them: 1 forgets nothing."""
    SCRATCH_DESIRED = "scratch/desired_accuracy"
    """Of the reference `scratch`: random initialisation trained on the desired task."""
    SCRATCH_HARMFUL = "scratch/harmful_accuracy"
    """Its worst-case post-attack accuracy, mean over n."""
    SCRATCH_REGRET = "regret/scratch_accuracy"
    """Worst-case post-attack accuracy minus that of `scratch`, mean over n."""
    SCRATCH_DOMINATES = "scratch/dominates"
    """1 where the model is better than `scratch` neither on what is kept nor on what is blocked, else 0: such a point
    stays off the frontier."""
    HARMFUL_BOUNDED_ACCURACY = "harmful/bounded_accuracy"
    """As `harmful/worst_accuracy`, among the families whose attacked models still do the desired task."""
    UTILITY_DESIRED = "utility/desired_accuracy"
    """Desired accuracy that is left after the worst-case attack, mean over n."""
    RECOVERY_EXAMPLES = "recovery/examples"
    """Labelled examples that bring the attacker to the stated share of the undefended accuracy; left out where no n
    that was tried does."""
    RECOVERY_STEPS = "recovery/steps"
    RECOVERY_TRIALS = "recovery/trials"
    RECOVERY_FLOPS = "recovery/flops"
    STRENGTH_SEARCH = "strength/search_accuracy"
    """Validation accuracy, mean over n, that ten times the attacker's search is expected to find."""
    STRENGTH_EXAMPLES = "strength/examples_accuracy"
    """Worst-case accuracy that ten times the largest n is expected to give."""
    AUDIT_PASSED = "audit/passed"
    """1 where every check of the audit passed, else 0: such a point stays off the frontier."""
    AUDIT_GAP = "audit/held_out_gap"
    """Accuracy of the worst attacker outside the distribution that was trained against, minus that of the worst
    within."""
    COST_TRAIN_SECONDS = "cost/train_seconds"
    COST_TRAIN_TEXTS = "cost/train_texts"
    """Texts that training read, repetitions, adversaries, erasure and distillation included."""
    COST_TRAIN_FLOPS = "cost/train_flops"
    """FLOPs of training's matrix products, estimated from a few steps."""
    COST_DISTIL_SECONDS = "cost/distil_seconds"
    """Of `cost/train_seconds`, what distillation took."""
    COST_DISTIL_TEXTS = "cost/distil_texts"
    """Texts that a distillation read, repetitions included."""
    COST_DISTIL_SPEED = "cost/distil_texts_per_second"
    COST_ATTACK_SECONDS = "cost/attack_seconds"
    COST_NUM_FINE_TUNES = "cost/num_fine_tunes"
    COST_MEMORY_BYTES = "cost/memory_bytes"
    """Most memory that training has taken so far: of the GPU, or of the process where there is none."""

    @staticmethod
    def attacked_sizes(names: Iterable[str]) -> list[int]:
        """The numbers of labelled examples whose `harmful_accuracy` is among some names, rising."""
        return sorted({int(match[1]) for match in map(_HARMFUL_ACCURACY.fullmatch, names) if match})

    @staticmethod
    def harmful_accuracy(num_examples: int) -> str:
        """Worst-case post-attack accuracy with `num_examples` labelled examples."""
        return f"harmful/n{num_examples}/accuracy"

    @staticmethod
    def harmful_loss(num_examples: int) -> str:
        """Cross-entropy of the winning attack with `num_examples` labelled examples."""
        return f"harmful/n{num_examples}/loss"

    @staticmethod
    def harmful_f1(num_examples: int) -> str:
        """Macro-F1 of the winning attack."""
        return f"harmful/n{num_examples}/macro_f1"

    @staticmethod
    def harmful_information(num_examples: int) -> str:
        """Mutual information (nats) between the winning attack's predictions and the labels."""
        return f"harmful/n{num_examples}/mutual_information"

    @staticmethod
    def recovered_share(num_examples: int) -> str:
        """Share of the undefended encoder's head start over random initialisation that an attack recovers."""
        return f"recovered/n{num_examples}/share"

    @staticmethod
    def kept_at(side: str, num_examples: int) -> str:
        """Head start kept with `num_examples` labelled examples; `side` is harmful or desired."""
        return f"kept/{side}/n{num_examples}"

    @staticmethod
    def kept_benign(task: str) -> str:
        """Head start kept on one benign task, mean over n."""
        return f"kept/benign/{task}"

    @staticmethod
    def utility(num_examples: int) -> str:
        """Desired accuracy of the attacked model, by the winning attack with `num_examples` labelled examples."""
        return f"utility/n{num_examples}/desired_accuracy"

    @staticmethod
    def benign(task: str, num_examples: int) -> str:
        """Accuracy of the best fine-tune on a benign task: `desired`, `grouped` (an unseen grouping of its classes),
        `held_out` (classes that no training saw) or a column of the data."""
        return f"benign/{task}/n{num_examples}/accuracy"

    @staticmethod
    def regret(num_examples: int) -> str:
        """Sample-efficiency regret E_n in loss: positive where the released model gives a head start."""
        return f"regret/n{num_examples}"

    @staticmethod
    def regret_accuracy(num_examples: int) -> str:
        """The same in balanced accuracy, model minus random initialisation."""
        return f"regret/n{num_examples}/accuracy"

    @staticmethod
    def rung_desired(step: int) -> str:
        """Desired accuracy on attacker-validation after so many outer steps."""
        return f"rung/{step}/desired_accuracy"

    @staticmethod
    def rung_harmful(step: int) -> str:
        """Mean over n of the worst family's accuracy on attacker-validation, attacked after so many outer steps."""
        return f"rung/{step}/harmful_accuracy"

    @staticmethod
    def again(attack: str, name: str) -> str:
        """A metric of an attack on the released model that came later; `attack` names it."""
        return f"again/{attack}/{name}"

    @staticmethod
    def low(name: str) -> str:
        """Lower end of a metric's 95 % interval."""
        return f"{name}/low"

    @staticmethod
    def high(name: str) -> str:
        """Upper end of a metric's 95 % interval."""
        return f"{name}/high"
