"""What the attack of `sweeps/quickstart.yaml` costs beside the same budget spent on `fine_tune` alone.

    python -m tests.benchmarks.attack_cost [--seeds 3] [--without fine_tune]

Both attack the built-in encoder in turns, in one process on one thread; printed are seconds of the processor, which
others on the machine disturb less than they do the clock, and the ratio of their sums. It may be 1.1 at most. How many
steps a search takes is a matter of its points, so several seeds of it are measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sdm_ray.attack.protocol import attack_model
from sdm_ray.config import AttackSettings, SweepSettings, load_settings
from sdm_ray.data.device import DeviceData
from sdm_ray.models.encoder import Trunk
from tests import ROOT
from tests.benchmarks.attack import builtin_world

QUICKSTART = ROOT / "sweeps" / "quickstart.yaml"


def seconds(trunk: Trunk, data: DeviceData, settings: AttackSettings) -> float:
    """Of the processor, for one attack."""
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    started = time.process_time()
    for _ in attack_model(trunk, params, data, settings):
        pass
    return time.process_time() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="of the attack's search, each measured once")
    parser.add_argument("--without", nargs="+", default=["fine_tune"], help="families of the attack to compare with")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    settings = load_settings(SweepSettings, QUICKSTART).trial.attack
    before = AttackSettings.model_validate(settings.model_dump() | {"families": tuple(options.without)})
    with tempfile.TemporaryDirectory() as folder:
        trunk, data = builtin_world(Path(folder), torch.device("cpu"))
        sides: dict[str, list[float]] = {"before": [], "now": []}
        for seed in range(options.seeds):
            sides["before"].append(seconds(trunk, data, before.model_copy(update={"seed": seed})))
            sides["now"].append(seconds(trunk, data, settings.model_copy(update={"seed": seed})))
            print({name: round(values[-1], 2) for name, values in sides.items()}, flush=True)
    before_seconds, now_seconds = (sum(values) for values in sides.values())
    print(f"before {before_seconds:.2f} s, now {now_seconds:.2f} s: {now_seconds / before_seconds:.3f} times")


if __name__ == "__main__":
    main()
