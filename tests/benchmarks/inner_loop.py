"""Outer steps of K inner steps: what a user could write instead, and every gradient mode, side by side on equal work.

    python -m tests.benchmarks.inner_loop [--steps 16] [--lengths fixed|real] [--walks two,paper] [--device cpu|cuda]

Each loop runs in a process of its own, and all take turns, so that noise hits them alike. `plain` is K fine-tuning
steps, the unit. Memory is the peak of the process above what it had before its first loop. `floor` is the time that the
FLOPs of the work would take at the rate at which `plain` does its own: K gradients, K+1 outer losses with their
gradients and K Hessian-vector products (a kept graph's double backward), the last two once more for a second walk; all
counted by `torch.utils.flop_counter` on the model as transformers computes it. Our trunk needs fewer (its last layer
computes the first token alone), so ours can be faster than this floor; `own floor` counts what ours computes.
`higher_cvx` needs the package cvxpylayers, which is no dependency. See `inner_loop_cases` for the walks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from sdm_ray.meta.functional import FlatModel
from tests.benchmarks.inner_loop_cases import OURS, THEIRS, World, make_case, make_world


def status_bytes(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def child(options: Any) -> None:
    """Run one case whenever a line comes in; say seconds and peak bytes above the base."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    run = make_case(options.case, options.walks, make_world(int(options.steps), options.lengths, device))
    cuda = device.type == "cuda"
    base = torch.cuda.memory_allocated(device) if cuda else status_bytes("VmRSS")
    if not cuda:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated(device) if cuda else status_bytes("VmHWM")
        print(json.dumps({"seconds": seconds, "bytes": peak - base}), flush=True)


def measure(cases: Sequence[str], walk: str, num_steps: int, options: Any) -> dict[str, dict[str, float]]:
    """Median and least seconds and peak bytes of each case; cases that cannot run are left out, with their reason."""
    command = [sys.executable, "-m", "tests.benchmarks.inner_loop", "--steps", str(num_steps), "--walks", walk]
    command += ["--lengths", options.lengths, "--device", options.device, "--threads", str(options.threads), "--case"]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    children = {}
    try:
        for name in cases:  # one after the other: starting is no part of the comparison
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = subprocess.Popen([*command, name], text=True, **pipes)  # type: ignore[call-overload]
            children[name] = process
            if process.stdout.readline().strip() != "ready":
                print(f"{name} does not run here: {process.communicate()[1].strip().splitlines()[-1]}", flush=True)
                del children[name]
        for _ in range(options.repeats + 1):  # the first one warms up
            for name, process in list(children.items()):
                process.stdin.write("\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    print(f"{name} failed: {process.communicate()[1].strip().splitlines()[-1]}", flush=True)
                    del children[name]
                    continue
                rows[name].append(json.loads(line))
    finally:
        for process in children.values():
            process.kill()
            process.communicate()
    return {name: _summary(values[1:]) for name, values in rows.items() if len(values) > 1}


def _summary(values: list[dict[str, float]]) -> dict[str, float]:
    seconds = [value["seconds"] for value in values]
    return {
        "median": statistics.median(seconds), "least": min(seconds), "bytes": max(value["bytes"] for value in values),
    }  # fmt: skip


def count_flops(world: World, walk: str, *, shortcut: bool) -> tuple[float, float]:
    """FLOPs of the K plain steps, and of the outer step's work."""
    model = FlatModel(world.trunk)
    flat = model.initial().requires_grad_()
    options = {"shortcut": True} if shortcut else {}

    def loss(batch: Any) -> torch.Tensor:
        features = functional_call(world.trunk, model.layout.unflatten(flat), batch.inputs, options)
        return F.cross_entropy(features @ world.head.T, batch.labels)

    def flops(work: Callable[[], Any]) -> tuple[float, Any]:
        with FlopCounterMode(display=False) as counter:
            result = work()
        return counter.get_total_flops(), result

    steps = products = 0.0
    for batch in world.inner:
        work, (gradient,) = flops(lambda batch=batch: torch.autograd.grad(loss(batch), flat, create_graph=True))  # type: ignore[misc]
        push = torch.ones_like(gradient)
        steps += work
        products += flops(lambda g=gradient, p=push: torch.autograd.grad(g, flat, p))[0]  # type: ignore[misc]
    forward, value = flops(lambda: loss(world.outer))
    backward = flops(lambda: torch.autograd.grad(value, flat))[0]
    walks, moments = (2 if walk == "two" else 1), len(world.inner) + 1
    return steps, steps + moments * forward + walks * (moments * backward + products)


def report(walk: str, num_steps: int, options: Any) -> dict[str, Any]:
    """Measure, print a table in Markdown and return the figures."""
    cases = [*THEIRS, *OURS] if options.cases is None else options.cases.split(",")
    if walk == "one":
        cases = [name for name in cases if name != "higher_cvx"]
    found = measure(cases, walk, num_steps, options)
    world = make_world(num_steps, options.lengths, torch.device("cpu"))
    plain_flops, work = count_flops(world, walk, shortcut=False)
    own_work = count_flops(world, walk, shortcut=True)[1]
    unit = found["plain"]["median"]
    floor, own_floor = unit * work / plain_flops, unit * own_work / plain_flops
    anchor = found.get("higher_cvx") or found.get("higher")
    print(
        f"\nK = {num_steps}, {options.lengths} lengths, walk `{walk}`, {options.device}, {options.threads} thread(s),"
    )
    print(f"torch {torch.__version__}. plain: {plain_flops / 1e9:.1f} GFLOP, work: {work / 1e9:.1f} GFLOP")
    print(f"(floor {floor:.2f} s = {floor / unit:.2f} plain), ours needs {own_work / 1e9:.1f} ({own_floor:.2f} s).\n")
    print("| loop | s (median) | s (least) | times plain | times floor | times own floor | anchor / it | GB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, row in found.items():
        ratio = "" if anchor is None else f"{anchor['median'] / row['median']:.2f}"
        seconds = row["median"]
        print(
            f"| {name} | {seconds:.2f} | {row['least']:.2f} | {seconds / unit:.2f} | {seconds / floor:.2f} | "
            f"{seconds / own_floor:.2f} | {ratio} | {row['bytes'] / 2**30:.2f} |",
            flush=True,
        )
    return {"walk": walk, "num_steps": num_steps, "floor": floor, "own_floor": own_floor, "cases": found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="16", help="inner steps K, several by commas")
    parser.add_argument("--lengths", choices=("fixed", "real"), default="fixed")
    parser.add_argument("--walks", default="two,paper", help="of one, paper, two")
    parser.add_argument("--cases", default=None, help="loops by commas; plain must be among them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None, help="write all figures there")
    parser.add_argument("--case", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case is not None:
        child(options)
        return
    results = [
        report(walk, int(steps), options) for steps in options.steps.split(",") for walk in options.walks.split(",")
    ]
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
