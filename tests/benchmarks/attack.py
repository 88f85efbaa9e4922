"""Fine-tunes per second: one `torch.optim` fine-tune after the other, as in the paper's code, against stacked ones.

    python -m tests.benchmarks.attack [--shape builtin|bert-tiny] [--points 8] [--shorten 1] [--device cpu|cuda]

Both sides run the same attackers (points of the paper's search at each n: Adam, whole model or head, 100 to 1000 steps;
subsets, orders and heads alike) and score each on attacker-validation once. Full fine-tunes and frozen ones (the head
alone) are reported apart, then the paper's mix of them and what its 1560 fine-tunes would take. `--shorten 10` takes a
tenth of every fine-tune's steps, on both sides: many points, and so stacks as full as the protocol's, in bearable time;
the hours are then those of the measured seconds times ten, which counts scoring too often. `builtin` is the
built-in encoder on the synthetic biographies; `bert-tiny` has the shape of `google/bert_uncased_L-2_H-128_A-2` (30 522
tokens, random weights) on random texts of 8 to 64 tokens.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sdm_ray.attack.engine.executor import Executor
from sdm_ray.attack.families import FAMILIES, Attacker, Facts
from sdm_ray.attack.space import SobolSampler
from sdm_ray.config import AttackSettings, DataSettings, EncoderSettings, SyntheticWorld
from sdm_ray.core.seeds import derived_seed
from sdm_ray.core.types import Task
from sdm_ray.data.device import DeviceData
from sdm_ray.data.tokenized import TokenizedData, prepare
from sdm_ray.models.encoder import Trunk, load_tokenizer, load_trunk, tokenizer_digest

PAPER_FINE_TUNES = 1560
"""(50 search points + 15 re-runs) x 4 sizes x 6 repetitions."""
SCORING_BATCH = 64
"""Texts that the serial side scores at once."""


def builtin_world(cache_dir: Path, device: torch.device) -> tuple[Trunk, DeviceData]:
    """The built-in encoder and the synthetic biographies."""
    encoder, data = EncoderSettings(), DataSettings(synthetic=SyntheticWorld(version=1))
    tokenizer = load_tokenizer(encoder, cache_dir=cache_dir, world=data.synthetic)
    tokenized = prepare(data, tokenizer, tokenizer_digest(tokenizer), cache_dir)
    trunk = load_trunk(encoder, cache_dir=cache_dir, world=data.synthetic)
    return trunk.to(device), DeviceData(tokenized, device)


def bert_tiny_world(cache_dir: Path, device: torch.device) -> tuple[Trunk, DeviceData]:
    """Random weights in BERT-Tiny's shape and random texts."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        "bert", hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    generator = np.random.default_rng(0)
    count, width = 4000, 64
    lengths = generator.integers(8, width + 1, count)
    ids = generator.zipf(1.3, (count, width)).clip(1, config.vocab_size - 1).astype(np.int32)
    ids[np.arange(width) >= lengths[:, None]] = 0
    tokenized = TokenizedData(
        input_ids=ids,
        lengths=lengths,
        desired=generator.integers(0, 2, count),
        harmful=generator.integers(0, 2, count),
        split=generator.integers(0, 4, count).astype(np.int8),
        desired_labels=("0", "1"),
        harmful_labels=("0", "1"),
        pad_id=0,
        digest="random",
    )
    return Trunk(model, "native").to(device), DeviceData(tokenized, device)


def make_attackers(settings: AttackSettings, facts: Facts) -> list[Attacker]:
    """The points of the search at each n."""
    family, result = FAMILIES["fine_tune"], []
    for n in (size for size in settings.num_examples if isinstance(size, int)):
        sampler = SobolSampler(family.space(settings, n, facts), derived_seed(settings.seed, "search", family.name, n))
        for trial, point in enumerate(sampler.ask(settings.num_search_trials)):
            result.append(dataclasses.replace(family.attacker(point, n), trial=trial))
    return result


def run_serially(trunk: nn.Module, data: DeviceData, executor: Executor, attackers: Sequence[Attacker]) -> None:
    """A straightforward loop: copy the model, make an optimiser, step, score."""
    plan = executor.plan(attackers)
    for attacker, subset, order, start in zip(attackers, plan.subsets, plan.orders, plan.heads, strict=True):
        model = copy.deepcopy(trunk).requires_grad_(not attacker.frozen)
        head = nn.Parameter(start.to(data.device, copy=True))
        trained = [head] if attacker.frozen else [head, *model.parameters()]
        optimizer = torch.optim.Adam(trained, lr=attacker.learning_rate)
        for positions in order:
            batch = data.batch(subset[positions], Task.HARMFUL)
            optimizer.zero_grad()
            F.cross_entropy(model(batch.input_ids, batch.attention_mask) @ head.T, batch.labels).backward()
            optimizer.step()
        with torch.no_grad():
            for part in executor.val.indices.split(SCORING_BATCH):
                batch = data.batch(part, Task.HARMFUL)
                (model(batch.input_ids, batch.attention_mask) @ head.T).cpu()


def run_stacked(executor: Executor, attackers: Sequence[Attacker]) -> None:
    """What the attack does."""
    for outcomes in executor.run(attackers, with_test=False):
        assert all(outcome.status != "crashed" for outcome in outcomes), outcomes


def measure(work: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """(wall-clock, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(trunk: nn.Module, data: DeviceData, settings: AttackSettings, shorten: int) -> None:
    """Print one line for each kind of fine-tune, and one for the paper's mix."""
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    executor = Executor(trunk, params, data, settings, Task.HARMFUL)
    attackers, totals = make_attackers(settings, executor.facts), [0.0, 0.0]
    print("kind    fine-tunes  steps   serial/s  stacked/s  ratio   CPU ms a step: serial, stacked")
    for kind, frozen in (("full", False), ("frozen", True)):
        chosen = [
            dataclasses.replace(attacker, num_steps=max(1, attacker.num_steps // shorten))
            for attacker in attackers
            if attacker.frozen == frozen
        ]
        steps = sum(attacker.num_steps for attacker in chosen)
        warm_up = [dataclasses.replace(attacker, num_steps=2) for attacker in chosen[:4]]
        run_serially(trunk, data, executor, warm_up)
        run_stacked(executor, warm_up)
        serial = measure(lambda chosen=chosen: run_serially(trunk, data, executor, chosen), data.device)  # type: ignore[misc]
        stacked = measure(lambda chosen=chosen: run_stacked(executor, chosen), data.device)  # type: ignore[misc]
        totals = [total + seconds for total, seconds in zip(totals, (serial[0], stacked[0]), strict=True)]
        print(
            f"{kind:<7} {len(chosen):>10} {steps:>6} {len(chosen) / serial[0]:>10.2f} {len(chosen) / stacked[0]:>10.2f}"
            f" {serial[0] / stacked[0]:>6.1f}   {1e3 * serial[1] / steps:.2f}, {1e3 * stacked[1] / steps:.2f}",
            flush=True,
        )
    hours = [total * shorten / len(attackers) * PAPER_FINE_TUNES / 3600 for total in totals]
    print(f"mix: {totals[0] / totals[1]:.1f} times faster; {PAPER_FINE_TUNES} fine-tunes would take {hours[0]:.2f} h")
    print(f"serially and {hours[1]:.2f} h stacked")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("builtin", "bert-tiny"), default="builtin")
    parser.add_argument("--points", type=int, default=8, help="points of the search at each n")
    parser.add_argument("--shorten", type=int, default=1, help="divisor of every fine-tune's number of steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options: Any = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    settings = AttackSettings.model_validate({"preset": "paper", "num_search_trials": options.points})
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        make = builtin_world if options.shape == "builtin" else bert_tiny_world
        trunk, data = make(Path(folder), device)
        print(f"{options.shape} on {device}, {options.threads} thread(s), torch {torch.__version__}")
        compare(trunk, data, settings, options.shorten)


if __name__ == "__main__":
    main()
