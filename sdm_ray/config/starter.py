"""Write a first sweep file for a user's data, with comments."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from sdm_ray.config.data import DataSettings


@dataclass(frozen=True, kw_only=True)
class Starter:
    """The contents of a first sweep file."""

    name: str
    data: DataSettings
    encoder: str
    pooling: str
    num_layers: int | None
    """Number of layers to keep, the lowest ones; None keeps all."""
    batch_size: int
    sizes: tuple[int, ...]
    """Labelled examples that the attacker has."""
    num_outer_steps: int
    num_trials: int
    gpus_per_trial: float
    remarks: dict[str, str]
    """Comments by the setting that they explain: `data`, `length`, `splits`, `encoder`, `sizes`."""
    command: str
    """The command line that made the file."""


SCRATCH = {"learning_rates": [3e-4, 1e-3], "screen_steps": 40, "max_steps": 160, "every_steps": 20, "patience": 3}
ATTACK = {
    "num_search_trials": 4, "num_probe_trials": 12, "num_rerun_seeds": 3, "num_curve_points": 0, "num_steps_min": 20,
    "num_steps_max": 60,
}  # fmt: skip


def sweep_yaml(starter: Starter) -> str:
    """The sweep file, as text that `load_settings` reads."""
    data, splits = starter.data, starter.data.splits
    said = {name: _line(text) for name, text in starter.remarks.items()}
    layers = "" if starter.num_layers is None else f"\n    num_layers: {starter.num_layers}"
    shares = ", ".join(f"{name}: {share:g}" for name, share in splits.model_dump().items())
    benign = next((n for n in (50, 20) if n <= max(starter.sizes)), max(starter.sizes))
    return f"""# {_line(starter.command)}
# {said["data"]}
# `sdm-ray sweep FILE --dry-run` times a little of a trial and says what the whole takes; `sdm-ray schema sweep` prints
# every setting with its meaning.
name: {_scalar(starter.name)}
trial:
  data:
    source: {_scalar(data.source)}
    text_column: {_scalar(data.text_column)}
    desired_column: {_scalar(data.desired_column)}   # what the model shall do well
    harmful_column: {_scalar(data.harmful_column)}   # what nobody shall be able to teach it cheaply
    max_length: {data.max_length}   # {said["length"]}
    splits: {{{shares}}}   # {said["splits"]}
    split_seed: {data.split_seed}
    # group_column: COLUMN   # rows of one person, product, ... stay in one split
  encoder:
    name: {_scalar(starter.encoder)}   # {said["encoder"]}
    pooling: {starter.pooling}{layers}
  train:
    method: mlac
    num_outer_steps: {starter.num_outer_steps}   # a first look; a model worth keeping takes 1000 or more
    desired_batch_size: {starter.batch_size}
    harmful_batch_size: {starter.batch_size}
    learning_rate: 1e-4
    log_every_steps: 10
    adversary:
      num_steps: 0   # persistent adversaries alone, first order: the cheapest
      batch_sizes: [8]
      pool: {{size: 4, lifespan_steps: 50, subset_size: {max(starter.sizes)}}}
  scratch: {_flow(SCRATCH)}
  attack:   # small enough to wait for; `sdm-ray attack MODEL --preset standard` is the one to believe
    num_examples: {list(starter.sizes)}   # {said["sizes"]}
    batch_sizes: [8]
{_block(ATTACK, 4)}
    learning_rate: {{low: 1e-4, high: 3e-3}}
    benign_num_examples: [{benign}]   # is something else still learnt from few labels?
    benign_families: [linear_probe, token_probe]
references: [pretrained, random, scratch, tuned]
space:   # what is searched: any setting of trial, by its dotted path
  train.blocking.harmful_adapted_calibrated: {{type: float, low: 0.5, high: 8, log: true}}
  train.learning_rate: {{type: float, low: 5e-5, high: 5e-4, log: true}}
search:
  num_trials: {starter.num_trials}
  max_desired_drop: 0.1   # a trial may lose this much desired accuracy against `tuned`
resources:
  cpus_per_trial: 1
  gpus_per_trial: {starter.gpus_per_trial:g}
"""


def _line(text: str) -> str:
    """The text on one line, because a line break would end a comment."""
    return " ".join(text.split())


def _scalar(value: str) -> str:
    """A text as a YAML scalar on one line."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("...\n").strip()


def _flow(values: object) -> str:
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=10**6).strip()


def _block(values: object, indent: int) -> str:
    text = yaml.safe_dump(values, sort_keys=False).strip()
    return "\n".join(" " * indent + line for line in text.splitlines())
