"""Creates a first sweep file from data and an encoder: suitable settings, and an estimate of the duration."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sdm_ray.config import EncoderSettings, SweepSettings
from sdm_ray.config.starter import Starter
from sdm_ray.config.train import UNTRAINED
from sdm_ray.data.look import Look
from sdm_ray.data.tokenized import encode, round_up
from sdm_ray.models.encoder import Trunk, load_tokenizer, load_trunk
from sdm_ray.models.pooling import choose_pooling

CUT_SHARE = 0.05
"""Largest share of texts that may be truncated."""
MOST_TOKENS = {"cpu": 64, "cuda": 256}
"""Largest proposed text length in tokens, by device."""
LAYERS_ON_CPU = 2
LOOKED_AT = 2000
"""Number of texts whose tokens are counted."""
TIMED_STEPS, TIMED_TEXTS = 3, 16
START_SECONDS = 60.0
"""Time for imports, start of Ray and MLflow, and caches."""
STEPS_PER_OUTER_STEP = 4.0
"""Cost of an outer step with persistent adversaries, in plain training steps."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Measured time of a plain training step, and the estimate based on it."""

    step_seconds: float
    """Time of a forward and backward pass of `TIMED_TEXTS` texts."""
    seconds: float
    """Duration of the whole sweep."""


def make_starter(look: Look, encoder_name: str, *, name: str, command: str, cache_dir: Path) -> tuple[Starter, Trunk]:
    """Contents of a first sweep file, and the encoder on this machine's device.

    Args:
        look: the data with their splits.
        encoder_name: a local folder or a hub id.
        name: name of the sweep.
        command: the command line that requested the file.
        cache_dir: as in `load_trunk`.

    Raises:
        UsageError: for an encoder that cannot be a trunk, or texts that it cannot process.
        RunError: if the hub cannot be reached.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, note = choose_pooling(EncoderSettings(name=encoder_name))
    tokenizer = load_tokenizer(encoder, cache_dir=cache_dir)
    trunk = load_trunk(encoder, cache_dir=cache_dir)
    depth = int(trunk.hf_model.config.num_hidden_layers)
    num_layers = LAYERS_ON_CPU if device == "cpu" and depth > LAYERS_ON_CPU else None
    if num_layers is not None:
        encoder = encoder.model_copy(update={"num_layers": num_layers})
        trunk = load_trunk(encoder, cache_dir=cache_dir)
    texts = look.examples.texts[:LOOKED_AT]
    limit = min(trunk.max_length, int(tokenizer.model_max_length))
    ids, lengths = encode(texts, tokenizer, limit, int(tokenizer.pad_token_id))
    width = min(round_up(int(np.quantile(lengths, 1 - CUT_SHARE))), MOST_TOKENS[device], limit)
    trunk.check_data(width, int(ids.max()))
    cut = float((lengths > width).mean())
    labels = look.examples.desired_labels, look.examples.harmful_labels
    kept = f"{num_layers} of {depth} layers, for there is no GPU" if num_layers else f"{depth} layers"
    starter = Starter(
        name=name,
        data=look.data.model_copy(update={"max_length": width}),
        encoder=encoder_name,
        pooling=encoder.pooling,
        num_layers=num_layers,
        batch_size=16 if look.counts["meta_train"] < 500 else 32,
        sizes=look.sizes,
        num_outer_steps=60 if device == "cpu" else 300,
        num_trials=2 if device == "cpu" else 6,
        gpus_per_trial=1.0 if device == "cuda" else 0.0,
        remarks={
            "data": f"{len(look.examples.texts)} texts; desired: {_named(labels[0])}; harmful: {_named(labels[1])}",
            "length": f"tokens; the longest text has {int(lengths.max())}"
            + (f", and {cut:.0%} of the texts are cut" if cut else ""),
            "splits": ", ".join(f"{name} {count}" for name, count in look.counts.items()) + " texts",
            "encoder": kept
            + ("" if note is None else "; " + note.removeprefix("encoder.").partition(" of ")[0] + " says"),
            "sizes": f"labelled texts that an attacker has; attacker_train holds {look.counts['attacker_train']}",
        },
        command=command,
    )
    return starter, trunk.to(device)


def estimate(settings: SweepSettings, trunk: Trunk, num_scored: int, num_at_once: int) -> Estimate:
    """Estimate the duration of a sweep from a few timed training steps.

    Args:
        settings: the sweep.
        trunk: its encoder.
        num_scored: number of texts in attacker-validation and test.
        num_at_once: number of concurrent trials.
    """
    trial, width = settings.trial, settings.trial.data.max_length
    step = _step_seconds(trunk, width)
    attack = trial.attack
    steps = (attack.num_steps_min + attack.num_steps_max) / 2 * attack.batch_sizes[0] / TIMED_TEXTS
    forward = num_scored / TIMED_TEXTS / 3  # a forward pass is a third of a step
    tunes = attack.num_fine_tunes * len(attack.num_examples)
    per_attack = step * (tunes * (steps + forward) + 12 * forward)  # token probes share a few passes
    per_training = (
        step * trial.train.num_outer_steps * STEPS_PER_OUTER_STEP * trial.train.desired_batch_size / TIMED_TEXTS
    )
    scratch = trial.scratch
    from_scratch = step * (scratch.screen_steps * len(scratch.learning_rates) + scratch.max_steps)
    from_scratch *= scratch.batch_size / TIMED_TEXTS
    trained = settings.search.num_trials + sum(name not in (*UNTRAINED, "scratch") for name in settings.references)
    models = settings.search.num_trials + len(settings.references)
    parallel = (models * per_attack + trained * per_training) / num_at_once
    return Estimate(step_seconds=step, seconds=START_SECONDS + from_scratch + parallel)


def _step_seconds(trunk: Trunk, width: int) -> float:
    """Time of a training step of `TIMED_TEXTS` texts."""
    device = next(trunk.parameters()).device
    ids = torch.full((TIMED_TEXTS, width), 5 % trunk.vocab_size, device=device)
    mask = torch.ones_like(ids)
    weights = list(trunk.parameters())
    # On a CPU, process time is measured instead of wall time, which other processes would inflate.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # as in a trial
    for _ in range(TIMED_STEPS):
        started = clock()
        torch.autograd.grad(trunk(ids, mask).square().sum(), weights)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - started)
    torch.set_num_threads(threads)
    return min(seconds)


def _named(labels: tuple[str, ...]) -> str:
    shown = ", ".join(label[:40] for label in labels[:4]) + (", ..." if len(labels) > 4 else "")
    return f"{len(labels)} classes ({shown})"
