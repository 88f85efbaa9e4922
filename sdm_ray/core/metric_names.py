"""Names of all metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any

OWN_METRICS: dict[str, Callable[[Any], float]] = {}
"""Metrics registered by a user's modules: name to function (`trial.own_metrics`)."""
_HARMFUL_ACCURACY = re.compile(r"harmful/n(\d+)/accuracy")


class Metric(StrEnum):
    """Names of logged metrics. Accuracies are shares in [0, 1], losses are in nats."""

    TRAIN_STEP = "train/step"
    """Completed outer steps: the axis of training curves, not a measurement."""
    TRAIN_SPEED = "train/steps_per_second"
    TRAIN_TEXT_SPEED = "train/texts_per_second"
    """Texts per second of a distillation."""
    TRAIN_SECONDS_LEFT = "train/seconds_left"
    VALIDATION_ACCURACY = "validation/desired_accuracy"
    """Accuracy on held-out meta-training examples during training."""
    VALIDATION_LOSS = "validation/desired_loss"
    DESIRED_ACCURACY = "desired/accuracy"
    DESIRED_LOSS = "desired/loss"
    HARMFUL_WORST_ACCURACY = "harmful/worst_accuracy"
    """Mean over n of the worst case over the attacker's search at each n: the objective that a sweep minimises."""
    HARMFUL_MEAN_ACCURACY = "harmful/mean_accuracy"
    """Mean over n and over completed search points, on attacker-validation; secondary."""
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
    """The same for few-shot learning of tasks that were not trained on, mean over them: 1 forgets nothing."""
    SCRATCH_DESIRED = "scratch/desired_accuracy"
    """Desired accuracy of the reference `scratch`: random initialisation trained on the desired task."""
    SCRATCH_HARMFUL = "scratch/harmful_accuracy"
    """Worst-case post-attack accuracy of `scratch`, mean over n."""
    SCRATCH_REGRET = "regret/scratch_accuracy"
    """Worst-case post-attack accuracy minus that of `scratch`, mean over n."""
    SCRATCH_DOMINATES = "scratch/dominates"
    """1 if the model is no better than `scratch` in what it keeps and in what it blocks, else 0: such a point is not on
    the frontier."""
    HARMFUL_BOUNDED_ACCURACY = "harmful/bounded_accuracy"
    """As `harmful/worst_accuracy`, over the families whose attacked models still do the desired task."""
    UTILITY_DESIRED = "utility/desired_accuracy"
    """Desired accuracy after the worst-case attack, mean over n."""
    RECOVERY_EXAMPLES = "recovery/examples"
    """Labelled examples with which the attacker reaches the given share of the undefended accuracy; missing if no
    tested n suffices."""
    RECOVERY_STEPS = "recovery/steps"
    RECOVERY_TRIALS = "recovery/trials"
    RECOVERY_FLOPS = "recovery/flops"
    STRENGTH_SEARCH = "strength/search_accuracy"
    """Expected validation accuracy, mean over n, of a search with ten times the budget."""
    STRENGTH_EXAMPLES = "strength/examples_accuracy"
    """Expected worst-case accuracy at ten times the largest n."""
    AUDIT_PASSED = "audit/passed"
    """1 if every check of the audit passed, else 0: such a point is not on the frontier."""
    AUDIT_GAP = "audit/held_out_gap"
    """Accuracy of the strongest attacker outside the training distribution of adversaries, minus that of the strongest
    within."""
    COST_TRAIN_SECONDS = "cost/train_seconds"
    COST_TRAIN_TEXTS = "cost/train_texts"
    """Texts that training read, repetitions, adversaries, erasure and distillation included."""
    COST_TRAIN_FLOPS = "cost/train_flops"
    """FLOPs of training's matrix products, estimated from a few steps."""
    COST_DISTIL_SECONDS = "cost/distil_seconds"
    """Time of distillation, as part of `cost/train_seconds`."""
    COST_DISTIL_TEXTS = "cost/distil_texts"
    """Texts read by a distillation, including repetitions."""
    COST_DISTIL_SPEED = "cost/distil_texts_per_second"
    COST_ATTACK_SECONDS = "cost/attack_seconds"
    COST_NUM_FINE_TUNES = "cost/num_fine_tunes"
    COST_MEMORY_BYTES = "cost/memory_bytes"
    """Peak memory of training so far: of the GPU, or of the process if there is no GPU."""

    @staticmethod
    def attacked_sizes(names: Iterable[str]) -> list[int]:
        """Sorted numbers of labelled examples for which `harmful_accuracy` is among some metric names."""
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
        """Accuracy of the best fine-tune on a benign task.

        The task is `desired`, `grouped` (an unseen grouping of its classes), `held_out` (classes that were not trained
        on) or a column of the data.
        """
        return f"benign/{task}/n{num_examples}/accuracy"

    @staticmethod
    def regret(num_examples: int) -> str:
        """Sample-efficiency regret E_n in loss: positive if the released model gives a head start."""
        return f"regret/n{num_examples}"

    @staticmethod
    def regret_accuracy(num_examples: int) -> str:
        """The same in balanced accuracy, model minus random initialisation."""
        return f"regret/n{num_examples}/accuracy"

    @staticmethod
    def rung_desired(step: int) -> str:
        """Desired accuracy on attacker-validation after a number of outer steps."""
        return f"rung/{step}/desired_accuracy"

    @staticmethod
    def rung_harmful(step: int) -> str:
        """Mean over n of the strongest family's accuracy on attacker-validation after a number of outer steps."""
        return f"rung/{step}/harmful_accuracy"

    @staticmethod
    def again(attack: str, name: str) -> str:
        """Metric of a later attack on the released model; `attack` is its name."""
        return f"again/{attack}/{name}"

    @staticmethod
    def low(name: str) -> str:
        """Lower end of a metric's 95 % interval."""
        return f"{name}/low"

    @staticmethod
    def high(name: str) -> str:
        """Upper end of a metric's 95 % interval."""
        return f"{name}/high"
