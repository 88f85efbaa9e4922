"""Record golden values: `python -m tests.golden record [AREA...]`."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from tests.golden import pins, worlds
from tests.golden.areas import AREAS, compute


def main() -> None:
    """Record all areas, or those that are named."""
    command, *names = sys.argv[1:] or ["help"]
    if command != "record":
        raise SystemExit("usage: python -m tests.golden record [AREA...]")
    torch.set_num_threads(1)
    failed: list[str] = []
    recorded = pins.load() if pins.FILE.exists() else {"values": {}}
    here = pins.machine()
    if names and recorded.get("machine", here) != here:
        bound = [name for name in names if not AREAS[name].is_exact_everywhere()]
        if bound:
            raise SystemExit(
                f"{', '.join(bound)}: other areas were recorded on another machine ({recorded['machine']}), and the "
                "values of one machine alone are equal to the bit: record there, or record all areas here"
            )
    else:
        recorded["machine"] = here
    with tempfile.TemporaryDirectory() as name:
        folder = worlds.write(Path(name).resolve())
        os.chdir(folder)
        for area in names or AREAS:
            recorded["values"][area] = {}
            for case in AREAS[area].cases:
                since = time.perf_counter()
                try:
                    recorded["values"][area][case] = compute(area, case, folder)
                except Exception:
                    traceback.print_exc()
                    failed.append(f"{area} {case}")
                print(f"{time.perf_counter() - since:6.2f} s  {area}  {case}", flush=True)
        os.chdir("/")
    pins.save(recorded)
    if failed:
        raise SystemExit(f"not recorded: {', '.join(failed)}")


main()
