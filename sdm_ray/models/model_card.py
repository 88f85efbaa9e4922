"""Model card of an exported model: threat model, measurements and their attack, attacks that were not tried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from sdm_ray.config import AttackSettings, TrialSettings, content_hash
from sdm_ray.config.attack import FAMILIES, SHARING
from sdm_ray.core.hub import is_hub_id
from sdm_ray.core.markup import markdown, markdown_code
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.verdict import few_reruns, says

WITHOUT_GRADIENTS = "reading the label off the features without gradients"
UNTRIED = {
    "fine_tune full": "fine-tuning of the whole model as it is",
    "fine_tune head": "training a head alone",
    "rescale": "fine-tuning after the scales within the weights are made equal",
    "partial": "freezing part of the trunk",
    "lora": "low-rank adapters",
    "attention_head": "fine-tuning with a head that reads single tokens",
    "linear_probe": f"{WITHOUT_GRADIENTS} (closed-form linear probe)",
    "logistic_regression": f"{WITHOUT_GRADIENTS} (logistic regression)",
    "knn": f"{WITHOUT_GRADIENTS} (nearest neighbours)",
    "token_probe": "reading the states of single tokens, rescaled",
    "noise": "fine-tuning after noise on the weights",
    "reinit": "fine-tuning after some layers are drawn again",
    "prune": "fine-tuning after pruning",
    "interpolate": "fine-tuning from an interpolation with the public encoder",
    "graft": "fine-tuning a graft of public and released blocks",
    "composed": "fine-tuning after several changes of the weights, one after the other",
    "benign_first": "fine-tuning on the desired task first",
    "masked_lm": "continued masked-LM pretraining on unlabelled text",
}
"""Attacks that remain untried if the attack lacks a family, by family."""
WITHOUT_OPTIMIZERS = {"fine_tune", "rescale", "linear_probe", "logistic_regression", "knn", "token_probe"}
"""Families that use Adam only or need no optimiser."""


def model_card(
    settings: TrialSettings,
    *,
    label_names: Sequence[str],
    metrics: Mapping[str, float],
    model_type: str,
    num_layers: int | None = None,
    failed_checks: Sequence[str] = (),
) -> str:
    """README.md of an exported folder, with the YAML header that Hugging Face reads.

    Args:
        settings: the trial that made the model.
        label_names: classes of the desired task.
        metrics: measurements by name.
        model_type: Hugging Face name of the architecture.
        num_layers: number of its transformer layers.
        failed_checks: names of the audit's failed checks.
    """
    native = settings.encoder.pooling == "native"
    return (
        "\n\n".join(
            [
                _header(settings, native, metrics),
                f"# {markdown(_name(settings))}",
                *_again(settings),
                _summary(settings, model_type, num_layers, len(label_names)),
                _threat_model(settings),
                *_verdict(settings, metrics, failed_checks),
                _measured(settings, metrics),
                _budget(settings.attack),
                "## What was not tried\n\n" + "\n".join(f"- {item}" for item in not_tried(settings)),
                _loading(settings, native, label_names),
                _licence(settings),
                f"Config hash `{content_hash(settings)}`, exported {date.today().isoformat()}.",
            ]
        )
        + "\n"
    )


def _name(settings: TrialSettings) -> str:
    """Title of the model in the card; a model trained from a sweep's point does not take the sweep's name."""
    return settings.name if settings.origin is None else f"{settings.name}, trained again"


def _again(settings: TrialSettings) -> list[str]:
    origin = settings.origin
    if origin is None:
        return []
    words = f"Trained again from the settings of trial {markdown_code(origin.trial_id)} of sweep "
    words += markdown_code(origin.sweep)
    return [f"{words}; all figures below are this model's own."]


def _verdict(settings: TrialSettings, metrics: Mapping[str, float], failed_checks: Sequence[str]) -> list[str]:
    said = says(metrics, failed_checks)
    if said is None:
        return []
    few = few_reruns(settings.attack.num_rerun_seeds, settings.attack.num_searches)
    return ["## Verdict\n\n" + f"**{said}.**" + (f"\n\n{few}." if few else "")]


def not_tried(settings: TrialSettings) -> list[str]:
    """Attacks that the attack of this trial did not try, one item per line of the card."""
    attack = settings.attack
    items = [label for names, label in UNTRIED.items() if not set(names.split()) & set(attack.families)]
    if set(attack.families) <= WITHOUT_OPTIMIZERS or set(attack.optimizers) == {"adam"}:
        items.insert(0, "optimisers other than Adam, and learning-rate schedules")
    more = "" if "all" in attack.num_examples else "more labelled examples than above, or with "
    return [
        *items,
        "more steps, settings and seeds than the budget above",
        f"attackers with {more}other data for the same label",
        f"harmful labels other than {markdown(settings.data.harmful_column)}",
    ]


def _header(settings: TrialSettings, native: bool, metrics: Mapping[str, float]) -> str:
    """YAML header for the hub; it contains data and encoders that have a hub id, and no local path."""
    encoder, source = settings.encoder.name, settings.data.source
    card: dict[str, Any] = {"license": "unknown"}
    if native:
        card |= {"library_name": "transformers", "pipeline_tag": "text-classification"}
    card["tags"] = ["task-blocking", "self-destructing-models", settings.train.method]
    if _on_hub(encoder):
        card["base_model"] = encoder
    if _on_hub(source):
        card["datasets"] = [source]
    shown = [(Metric.DESIRED_ACCURACY, "desired accuracy"), (Metric.HARMFUL_WORST_ACCURACY, "worst harmful accuracy")]
    values = [(name, label, metrics.get(name, math.nan)) for name, label in shown]
    measured = [
        {"type": "accuracy", "name": f"{label} ({name})", "value": round(value, 6)}
        for name, label, value in values
        if math.isfinite(value)
    ]
    if measured:
        task = {"type": "text-classification", "name": "desired and harmful task"}
        # The hub requires an id even for data that it does not host.
        dataset = {"type": source if _on_hub(source) else "local", "name": Path(source).name}
        results = [{"task": task, "dataset": dataset, "metrics": measured}]
        card["model-index"] = [{"name": _name(settings), "results": results}]
    return f"---\n{yaml.safe_dump(card, sort_keys=False, allow_unicode=True)}---"


def _on_hub(name: str) -> bool:
    return is_hub_id(name) and not Path(name).exists()


def _summary(settings: TrialSettings, model_type: str, num_layers: int | None, num_classes: int) -> str:
    layers = f"{num_layers}-layer " if num_layers else ""
    data, method = settings.data, settings.train.method
    desired = f"**{markdown(data.desired_column)}** ({num_classes} classes)"
    harmful = f"**{markdown(data.harmful_column)}**"
    if method in ("ac", "mlac"):
        purpose = f"to stay useful for {desired} and to be hard to adapt to {harmful}"
    else:
        purpose = f"for {desired}; it is a reference, and nothing in it resists adapting to {harmful}"
    return (
        f"A {layers}{markdown(model_type)} encoder made by method `{method}` {purpose}. Made by sdm-ray after "
        "Henderson et al., *Self-Destructing Models* (arXiv 2211.14946). A research artefact: see what was not tried "
        "before relying on it."
    )


def _licence(settings: TrialSettings) -> str:
    return (
        f"## Licence\n\nNot set. Weights derive from the encoder {markdown_code(settings.encoder.name)} and were "
        f"trained on {markdown_code(settings.data.source)}: check the terms of both, then replace `license: unknown` "
        "at the top of this file."
    )


def _threat_model(settings: TrialSettings) -> str:
    numbers = ", ".join(str(number) for number in settings.attack.num_examples)
    harmful = markdown(settings.data.harmful_column)
    return (
        "## Threat model\n\n"
        f"The adversary has these weights, n labelled examples of {harmful} (n in {{{numbers}}}), "
        "and free choice among the attack families below, of learning rate, steps and batch size. Blocking aims at "
        "this: adapting these weights costs as many examples as adapting a randomly initialised encoder. Nothing here "
        "protects against an adversary who uses another model."
    )


def _measured(settings: TrialSettings, metrics: Mapping[str, float]) -> str:
    rows = [
        ("desired accuracy (test)", Metric.DESIRED_ACCURACY),
        ("harmful accuracy after the worst attack, mean over n", Metric.HARMFUL_WORST_ACCURACY),
        *(
            (f"harmful accuracy after the worst attack, n = {number}", Metric.harmful_accuracy(number))
            for number in Metric.attacked_sizes(metrics)
        ),
        ("share of the largest harmful class", Metric.HARMFUL_BASE_RATE),
        ("head start over random initialisation, in accuracy", Metric.REGRET_ACCURACY),
        ("head start over random initialisation, in nats", Metric.REGRET_LOSS),
        ("share of the public encoder's head start that comes back", Metric.RECOVERED_SHARE),
        ("head start over an encoder trained from scratch on the desired task, in accuracy", Metric.SCRATCH_REGRET),
        ("desired accuracy of that encoder (test)", Metric.SCRATCH_DESIRED),
        ("harmful head start kept, between scratch (0) and the public encoder (1)", Metric.KEPT_HARMFUL),
        ("benign head start kept, on tasks that no training saw", Metric.KEPT_BENIGN),
        ("harmful accuracy after the worst attack that leaves the desired task", Metric.HARMFUL_BOUNDED_ACCURACY),
        ("desired accuracy that the worst attack leaves", Metric.UTILITY_DESIRED),
        ("audit passed (1) or failed (0)", Metric.AUDIT_PASSED),
    ]
    lines = [f"| {label} | {_number(metrics, str(name))} |" for label, name in rows if str(name) in metrics]
    if not lines:
        return "## What was measured\n\nNothing yet."
    note = (
        "Harmful accuracies are balanced over classes; intervals in brackets are 95 % over the attacker's seeds. A "
        "head start of 0 or less means that the weights gave this attacker nothing."
    )
    return "\n".join(["## What was measured", "", "| metric | value |", "| --- | --- |", *lines, "", note])


def _number(metrics: Mapping[str, float], name: str) -> str:
    value = metrics[name]
    if not math.isfinite(value):
        return "not measured"
    low, high = metrics.get(Metric.low(name), math.nan), metrics.get(Metric.high(name), math.nan)
    interval = f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{value:.3f}{interval}"


def _budget(attack: AttackSettings) -> str:
    fits = (attack.num_search_trials * attack.num_search_seeds + attack.num_rerun_seeds) * attack.num_searches
    untried = [name for name in FAMILIES if name not in attack.families]
    shared = f" ({' and '.join(SHARING)} share them)" if attack.shares_search else ""
    balanced = "class-balanced" if attack.class_balanced else "as they come"
    return (
        "## Attack budget\n\n"
        f"Attack families: {', '.join(attack.families)}; not tried: {', '.join(untried) or 'none of the others'}.\n\n"
        f"For each of them and each n: {attack.num_search_trials} settings searched ({attack.num_search_seeds} seed(s) "
        "each) on an attacker-validation split, the winner re-run on "
        f"{attack.num_rerun_seeds} fresh seeds, scored once on test: {fits} fine-tunes{shared}. Learning rate of Adam "
        f"log-uniform in [{attack.learning_rate.low:g}, {attack.learning_rate.high:g}], {attack.num_steps_min} to "
        f"{attack.num_steps_max} steps, batches of {', '.join(str(size) for size in attack.batch_sizes)}, examples "
        f"{balanced}."
    )


def _loading(settings: TrialSettings, native: bool, label_names: Sequence[str]) -> str:
    if native:
        code = (
            "from transformers import pipeline\n\n"
            'classify = pipeline("text-classification", model="PATH/TO/THIS/FOLDER")\n'
            'classify("... a biography ...")'
        )
        note = f"One of {', '.join(map(markdown, label_names))}."
    else:
        code = (
            "from sdm_ray.models.export import load_exported\n\n"
            'trunk, params, head, meta = load_exported("PATH/TO/THIS/FOLDER")'
        )
        note = (
            f"Pooling is `{settings.encoder.pooling}`, which this architecture's `ForSequenceClassification` does not "
            "do: `model.safetensors` holds the trunk alone, `head.safetensors` the classifier (`weight`, classes x "
            "features, no bias), and `sdm_ray.json` the names of the classes."
        )
    return f"## Use\n\n```python\n{code}\n```\n\n{note}"
