"""What erasure from the residual stream adds to a training, and how long finding it takes.

    python -m tests.benchmarks.erasure [--directions 6] [--steps 60] [--rounds 5] [--minilm]

Trains on the built-in world from the same state with and without erasure, in turns, with the quickstart's persistent
adversaries, with fresh ones of four steps and with none, and reports the medians of milliseconds of an outer step and
their ratio. `--minilm` does so with a BERT of MiniLM's shape (two layers, width 384, 30 522 tokens) and random weights,
whose directions are random too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from sdm_ray.config import EraseSettings, TrainSettings, TrialSettings
from sdm_ray.core.progress import run_through
from sdm_ray.core.seeds import Generators
from sdm_ray.core.types import Split
from sdm_ray.meta.outer.erase import find_erasure
from sdm_ray.meta.outer.step import OuterStep
from sdm_ray.meta.trainer import GENERATORS
from sdm_ray.models.encoder import Trunk
from sdm_ray.models.erasure import Direction, Erasure
from sdm_ray.models.stream import stream_of
from sdm_ray.trial.workspace import open_workspace, with_pooling

POOL = {"num_steps": 0, "pool": {"size": 8, "lifespan_steps": 100, "subset_size": 100}}
TRAININGS: dict[str, dict[str, Any]] = {
    "pool of persistent adversaries, first order": {"adversary": POOL},
    "fresh adversaries of four steps": {"adversary": {"num_steps": 4}},
    "no adversary": {"method": "erase"},
}
TARGET = 1.05


class Cost(NamedTuple):
    """Seconds of an outer step."""

    plain: float
    erased: float

    @property
    def ratio(self) -> float:
        """Of what a training with erasure takes to what it takes without."""
        return self.erased / self.plain


def minilm() -> Trunk:
    """A BERT of MiniLM's shape with random weights, of two layers."""
    config = BertConfig(hidden_size=384, num_hidden_layers=2, num_attention_heads=12, intermediate_size=1536)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    return Trunk(model, "native")


def random_erasure(trunk: Trunk, count: int) -> Erasure:
    """Directions of the last hidden state, drawn at random: they cost what found ones do."""
    stream, generator = stream_of(trunk), torch.Generator().manual_seed(0)
    drawn = torch.randn(count, trunk.feature_dim, generator=generator, dtype=torch.float64)
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    found = [Direction(stream.num_states - 1, covector) for covector in drawn]
    return Erasure.of(stream, found, params, everywhere=stream.pre_norm)


def measure(
    trunk: Trunk, data: Any, erasure: Erasure, training: dict[str, Any], *, steps: int = 60, rounds: int = 5
) -> Cost:
    """Seconds of an outer step without and with erasure, each the median of its rounds, which take turns.

    Args:
        trunk: where training starts.
        data: examples.
        erasure: what is kept out.
        training: settings of it.
        steps: of a round.
        rounds: of each; one more that is not counted warms up.
    """
    settings = TrainSettings.model_validate(training)
    kept = (None, erasure)
    made = [
        OuterStep(settings, trunk=trunk, data=data, generators=Generators(0, GENERATORS), erasure=one) for one in kept
    ]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for index, step in enumerate(made):
            started = time.process_time()  # what else runs on the machine does not count
            for _ in range(steps):
                step.step()
            seconds[index].append((time.process_time() - started) / steps)
    plain, erased = (statistics.median(times[1:]) for times in seconds)
    return Cost(plain, erased)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directions", type=int, default=6)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minilm", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trial = with_pooling(TrialSettings())
    work = open_workspace(trial)
    if options.minilm:
        trunk = minilm()
        erasure = random_erasure(trunk, options.directions)
    else:
        trunk = work.trunk(trial.encoder, "pretrained", 0)
        asked, indices = EraseSettings(num_directions=options.directions), work.data.indices(Split.META_TRAIN)
        search = find_erasure(asked, trunk=trunk, data=work.data, indices=indices, seed=0)
        found = run_through(search, lambda progress: None)
        erasure = found.erasure
        print(f"{options.directions} directions found in {found.seconds:.1f} s\n")
    print("| training | ms a step without | with | ratio |\n| --- | ---: | ---: | ---: |")
    for name, training in TRAININGS.items():
        cost = measure(trunk, work.data, erasure, training, steps=options.steps, rounds=options.rounds)
        print(f"| {name} | {1e3 * cost.plain:.1f} | {1e3 * cost.erased:.1f} | {cost.ratio:.3f} |", flush=True)
    print(f"\nTarget: {TARGET}")


if __name__ == "__main__":
    main()
