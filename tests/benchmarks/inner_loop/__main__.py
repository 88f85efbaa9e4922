"""Outer steps of K inner steps: what a user could write instead, and every gradient mode, side by side on equal work.

    python -m tests.benchmarks.inner_loop [--steps 4,16,64] [--lengths fixed|real] [--walks two,paper] [--device cpu]

The work: K Adam steps of a BERT-Tiny from the same weights on the same batches (16 texts; the outer one has 20), the
outer loss after each of the 0 to K steps, and the gradients that the walk asks for:

- `one`: trunk, head and learning rate of one loss, the mean uncalibrated outer loss, in one backward pass;
- `paper`: the trunk of minus the mean calibrated outer loss in one backward pass, as the paper's code takes it; head
  and learning rate are not learned;
- `two`: the method. The trunk of minus the mean calibrated outer loss, and the adversary's head and learning rate of
  its own, uncalibrated one: two backward passes through one loop.

Of theirs only `higher_cvx` calibrates; `higher` and `torchopt` take the uncalibrated loss in its place, which is less
work than asked. `plain` is K steps of `torch.optim.Adam(fused=True)`, the unit. Ours: see `sdm_ray.meta.inner.loop`
(`truncated` differentiates the last 4 updates). Real lengths are those of biographies: theirs pad each batch to its
longest text, `_128` to the full length; ours pad to the next multiple of 8, as training does.

Each loop runs in a process of its own, and all take turns, so that noise hits them alike (`turns`). The
floor is the time that the FLOPs of the work would take at the rate at which `plain` does its own: K gradients, K+1
outer losses with their gradients, and K Hessian-vector products, the last two once for each backward pass
(`floor`). It counts the model as transformers computes it. Our trunk needs fewer, for its last layer
computes the first token alone, so ours may be faster than that floor; `own floor` counts what ours computes.

Before anything is timed, `torchopt` and the exact modes must agree with `higher` on the trunk gradient of the
smallest K. Compiling takes minutes a table; `--cases` leaves it out.

Every measurement is printed and appended to the file of `--rows` at once, so a run that is stopped leaves what it
measured; the table of a walk follows when all its loops are done.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.inner_loop.floor import EXACT, agreement, count_flops
from tests.benchmarks.inner_loop.ours import BESIDE, FLAT, OURS, three_vectors
from tests.benchmarks.inner_loop.theirs import PACKAGES, THEIRS
from tests.benchmarks.inner_loop.turns import FULL_SUFFIX, Job, Row, serve, take_turns

ANCHOR = "higher_cvx"
"""What the paper's code does."""
WALKS = ("one", "paper", "two")


def cases_of(walk: str, options: Any) -> list[str]:
    """The loops of a table, in its order."""
    theirs = [name for name in THEIRS if walk != "one" or name != ANCHOR]
    if options.lengths == "real":
        theirs += [name + FULL_SUFFIX for name in theirs if name != "torchopt"]
    names = [*theirs, *OURS, *(BESIDE if walk == "two" else ())]
    return names if options.cases is None else [name for name in names if name in options.cases.split(",")]


def missing_package(case: str) -> str | None:
    """The package that a loop needs and that is not installed."""
    package = PACKAGES.get(case.removesuffix(FULL_SUFFIX))
    return None if package is None or find_spec(package) is not None else package


def keep_turn(path: Path, job: Job, name: str, number: int, turn: dict[str, float]) -> None:
    """Print a measurement and append it to a file of JSON lines; round 0 warms up."""
    where = f"K = {job.num_steps}, walk `{job.walk}`, {f'round {number}' if number else 'warm-up'}"
    print(f"{where}: {name} {turn['seconds']:.3f} s, {turn['bytes'] / 2**30:.2f} GB", flush=True)
    row = {**job._replace(case=name)._asdict(), "round": number, **turn}
    del row["spare"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def measure(job: Job, cases: Sequence[str], options: Any) -> dict[str, Row]:
    """A row for each loop; those whose package is missing say so."""
    missing = {name: package for name in cases if (package := missing_package(name)) is not None}
    jobs = {name: job._replace(case=name) for name in cases if name not in missing}
    rows = take_turns(jobs, options.repeats, partial(keep_turn, options.rows, job))
    absent = {name: Row(problem=f"not installed: pip install {package}") for name, package in missing.items()}
    return {name: absent.get(name) or rows[name] for name in cases}


def report(job: Job, options: Any) -> dict[str, Any]:
    """Measure the loops of a walk, print them in Markdown and return the figures."""
    rows = measure(job, cases_of(job.walk, options), options)
    if rows["plain"].problem is not None:
        raise SystemExit(f"plain {rows['plain'].problem}: without it there is no unit")
    num_walks, unit = 2 if job.walk == "two" else 1, rows["plain"].median
    theirs = count_flops(job._replace(case="plain").world("meta"), shortcut=False)
    ours = count_flops(job._replace(case="adjoint").world("meta"), shortcut=True)
    floors = {"plain": unit * theirs.work(num_walks) / theirs.gradients}
    floors["ours"] = unit * ours.work(num_walks) / theirs.gradients
    device = torch.cuda.get_device_name() if torch.device(job.device).type == "cuda" else f"{job.threads} thread(s)"
    work = f"{theirs.gradients:.3e} for K gradients + {theirs.forwards:.3e} for K+1 outer losses"
    work += f" + {num_walks} x ({theirs.backwards:.3e} for their gradients + {theirs.products:.3e} for K products)"
    print(
        f"\nK = {job.num_steps}, {job.lengths} lengths, walk `{job.walk}`; {job.device}, {device}, "
        f"torch {torch.__version__}, {options.repeats} repetitions.\n"
        f"FLOPs of `plain`: {theirs.gradients:.3e}. Of the work: {work} = {theirs.work(num_walks):.3e}; at the rate of "
        f"`plain` the floor is {floors['plain']:.3f} s, {floors['plain'] / unit:.2f} times plain.\n"
        f"Ours compute {ours.work(num_walks):.3e}: own floor {floors['ours']:.3f} s, {floors['ours'] / unit:.2f} times "
        "plain.\n"
    )
    _print_table(rows, floors)
    return {
        **job._asdict(),
        "flops": theirs._asdict(),
        "own_flops": ours._asdict(),
        "floor_seconds": floors["plain"],
        "own_floor_seconds": floors["ours"],
        "three_vectors_bytes": three_vectors(job._replace(case="adjoint", device="cpu").world()),
        "rows": {name: {**row._asdict(), "median": row.median if row.seconds else None} for name, row in rows.items()},
    }


def _print_table(rows: dict[str, Row], floors: dict[str, float]) -> None:
    unit, anchor = rows["plain"].median, rows.get(ANCHOR, Row())
    heads = ["loop", "s, median", "s, fastest", "times plain", "times floor", "times own floor"]
    heads += [f"{ANCHOR} / it", "GB above base"]
    busy = any(row.busy_seconds is not None for row in rows.values())
    heads += ["s, GPU busy"] if busy else []
    print(f"| {' | '.join(heads)} |\n| --- |{' ---: |' * (len(heads) - 1)}")
    for name, row in rows.items():
        if row.problem is not None:
            print(f"| {name} | {row.problem} |{' |' * (len(heads) - 2)}")
            continue
        cells = [name, f"{row.median:.3f}", f"{min(row.seconds):.3f}", f"{row.median / unit:.2f}"]
        same_work = name not in (*BESIDE, "plain", "plain" + FULL_SUFFIX)
        cells.append(f"{row.median / floors['plain']:.2f}" if same_work else "")
        cells.append(f"{row.median / floors['ours']:.2f}" if name in OURS else "")
        cells.append(f"{anchor.median / row.median:.2f}" if anchor.seconds and same_work else "")
        cells.append(f"{row.num_bytes / 2**30:.2f}")
        cells += ["" if row.busy_seconds is None else f"{row.busy_seconds:.3f}"] if busy else []
        print(f"| {' | '.join(cells)} |", flush=True)


def memory_growth(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bytes a step between the two largest K, for each mode whose memory is flat in K but for vectors.

    Beside it stand three vectors (variables and Adam's moments) of the larger episode, and what keeping three a step
    grows by: an episode of more steps has more tokens, so every one of its vectors is longer.
    """
    found = []
    for walk in dict.fromkeys(result["walk"] for result in results):
        low, high = sorted((r for r in results if r["walk"] == walk), key=lambda r: int(r["num_steps"]))[-2:]
        steps = high["num_steps"] - low["num_steps"]
        kept = (high["num_steps"] * high["three_vectors_bytes"] - low["num_steps"] * low["three_vectors_bytes"]) / steps
        for name in FLAT:
            ends = [result["rows"].get(name, {"seconds": ()}) for result in (low, high)]
            if all(end["seconds"] for end in ends):
                grown = (ends[1]["num_bytes"] - ends[0]["num_bytes"]) / steps
                vectors = high["three_vectors_bytes"]
                found.append({"walk": walk, "mode": name, "bytes": grown, "three_vectors": vectors, "kept": kept})
    return found


def compare(options: Any) -> dict[str, Any]:
    """Check, then measure every table that was asked for."""
    steps = sorted(int(number) for number in options.steps.split(","))
    job = Job("adjoint", "one", steps[0], options.lengths, options.device, options.threads, options.quick)
    cosines = None
    if missing_package("higher") is None:
        cosines = agreement(job, [name for name in EXACT if name in cases_of("one", options)])
        listed = ", ".join(f"{name} {cosine:.6f}" for name, cosine in cosines.items())
        print(f"Cosines with the trunk gradient of `higher`, K = {steps[0]}: {listed}.", flush=True)
    jobs = [job._replace(walk=walk, num_steps=number) for walk in options.walks.split(",") for number in steps]
    results = [report(one, options) for one in jobs]
    growth = memory_growth(results) if len(steps) > 1 else []
    if growth:
        print(f"\nMemory a step between K = {steps[-2]} and {steps[-1]}, MB:\n")
        print(
            "| walk | mode | it grows by | three vectors | keeping three a step |\n| --- | --- | ---: | ---: | ---: |"
        )
    for line in growth:
        sizes = (f"{line[name] / 1e6:.1f}" for name in ("bytes", "three_vectors", "kept"))
        print(f"| {line['walk']} | {line['mode']} | {' | '.join(sizes)} |")
    return {"cosines": cosines, "tables": results, "memory_growth": growth}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="4,16,64", help="inner steps K, by commas")
    parser.add_argument("--lengths", choices=("fixed", "real"), default="fixed")
    parser.add_argument("--walks", default="two,paper", help="of one, paper, two")
    parser.add_argument("--cases", default=None, help="only these loops, by commas; plain must be among them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that everything runs")
    parser.add_argument("--json", type=Path, default=None, help="write all figures there")
    parser.add_argument("--rows", type=Path, default=Path("runs/inner_loop.jsonl"), help="append measurements there")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        serve(Job(**json.loads(options.child)))
        return
    torch.set_num_threads(options.threads)
    results = compare(options)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
