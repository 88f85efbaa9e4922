"""Processes that take turns, for `tests.benchmarks.inner_loop`: one a loop, with a memory of its own.

Memory is the peak of a process (resident, or allocated on the GPU) above what it had before its first loop: packages
are imported and the model is built by then. Compiling takes memory once that is not the loop's, so a compiled loop's
base is read after its first run.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sdm_ray.meta.inner.memory import free_bytes
from tests.benchmarks.inner_loop.ours import our_case
from tests.benchmarks.inner_loop.theirs import THEIRS, their_case
from tests.benchmarks.inner_loop.world import BERT_TINY, QUICK, World

FULL_SUFFIX = "_128"
"""Of loops of a user who pads every batch to the full length."""
SHARE = 0.25
"""Share of the free memory that processes may hold together while they wait."""


class Job(NamedTuple):
    """A loop and the work that it does."""

    case: str
    walk: str
    num_steps: int
    lengths: str
    device: str
    threads: int
    quick: bool
    spare: float = float("inf")
    """Bytes that its process may hold while it waits."""

    def world(self, device: str | None = None) -> World:
        """Its model and batches."""
        theirs = self.case.removesuffix(FULL_SUFFIX) in THEIRS
        padding = "full" if self.case.endswith(FULL_SUFFIX) else "longest" if theirs else "eights"
        shape = QUICK if self.quick else BERT_TINY
        return World(self.num_steps, self.lengths, padding, torch.device(device or self.device), shape)

    def make(self, world: World) -> Callable[[], Any]:
        """One outer step of it."""
        name = self.case.removesuffix(FULL_SUFFIX)
        return (their_case if name in THEIRS else our_case)(name, self.walk, world)


class Row(NamedTuple):
    """What was measured of a loop, or why nothing was."""

    seconds: tuple[float, ...] = ()
    num_bytes: float = 0.0
    """Most memory above the base."""
    busy_seconds: float | None = None
    """How long the GPU's kernels of one outer step ran; None without one."""
    problem: str | None = None

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)


class ChildError(Exception):
    """A loop's process ended."""


class Child:
    """A loop in a process of its own."""

    def __init__(self, job: Job) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.inner_loop", "--child", json.dumps(job._asdict())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def answer(self, request: str | None = None) -> Any:
        """The answer to a request, or the next one of a process that starts.

        Raises:
            ChildError: with the last line that the process wrote to its standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            if request is not None:
                self._process.stdin.write(request + "\n")
                self._process.stdin.flush()
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        raise ChildError("was killed: too little memory?" if code < 0 else said[-1] if said else f"exit code {code}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def take_turns(
    jobs: dict[str, Job], repeats: int, on_turn: Callable[[str, int, dict[str, float]], None] = lambda *turn: None
) -> dict[str, Row]:
    """Measure every loop `repeats` times, one after the other in each round; round 0 warms up.

    Args:
        jobs: the loops by name.
        repeats: rounds that count.
        on_turn: called with name, round, seconds and bytes as soon as they are measured.
    """
    spare = SHARE * (free_bytes(torch.device(next(iter(jobs.values())).device)) or float("inf")) / len(jobs)
    children = {name: Child(job._replace(spare=spare)) for name, job in jobs.items()}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    problems: dict[str, str] = {}

    def ask(name: str, request: str | None) -> Any:
        if name in problems:
            return None
        try:
            return children[name].answer(request)
        except ChildError as error:
            problems[name] = f"failed: {error}"
            return None

    try:
        for name in jobs:
            ask(name, None)
        for number in range(repeats + 1):
            for name in jobs:
                if (turn := ask(name, "turn")) is not None:
                    turns[name].append(turn)
                    on_turn(name, number, turn)
        on_gpu = any(torch.device(job.device).type == "cuda" for job in jobs.values())
        busy = {name: ask(name, "busy") if on_gpu else None for name in jobs}
    finally:
        for child in children.values():
            child.close()
    return {
        name: Row(
            tuple(turn["seconds"] for turn in found[1:]),
            max((turn["bytes"] for turn in found), default=0.0),
            busy[name],
            problems.get(name),
        )
        for name, found in turns.items()
    }


def serve(job: Job) -> None:
    """Answer requests on the standard input until it ends: `turn` measures one outer step, `busy` profiles one."""
    answers, sys.stdout = sys.stdout, sys.stderr
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")  # this one, not a neighbour
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    run = job.make(job.world())
    if job.case.endswith("_compiled"):
        run()
    _hand_back(device)
    base, handed_back = _reset_peak(device), False
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() == "busy":
            answer: Any = _busy_seconds(run)
        else:
            if handed_back:
                run()  # the allocator is as warm as in a run of many outer steps
            answer = {"seconds": _seconds(run, device), "bytes": _peak(device) - base}
            gc.collect()
            handed_back = answer["bytes"] > job.spare
            if handed_back:
                _hand_back(device)
        print(json.dumps(answer), file=answers, flush=True)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _busy_seconds(run: Callable[[], Any]) -> float:
    """How long kernels ran during one outer step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(float(event.self_device_time_total) for event in profile.key_averages()) / 1e6


def _hand_back(device: torch.device) -> None:
    """Give freed memory to the system; a graph may hold itself in a cycle."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _reset_peak(device: torch.device) -> int:
    """Forget the peak so far; bytes that are taken now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_bytes("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
