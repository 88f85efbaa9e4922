"""A driver in a process of its own, for tests that kill it.

`python -m tests.fakes.sweep_driver FOLDER FUNCTION [--resume]`; further arguments are overrides as on the command line.
Prints the outcome as its last line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sdm_ray.sweep import run_sweep
from tests.fakes import sweep as sweep_fakes


def main() -> None:
    folder, function, *rest = sys.argv[1:]
    changes = dict(text.split("=", 1) for text in rest if text != "--resume")
    settings = sweep_fakes.settings(Path(folder), **changes)
    outcome = run_sweep(settings, resume="--resume" in rest, trial_function=f"tests.fakes.sweep:{function}")
    ended = [result.trial_id for result in outcome.results]
    print(json.dumps({"interrupted": outcome.interrupted, "ended": ended, "failed": len(outcome.failures)}))


if __name__ == "__main__":
    main()
