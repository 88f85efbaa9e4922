"""CUDA graphs of a training step: launched once for all its kernels, where a step's shapes recur.

A small model's step is hundreds of short kernels, and a GPU waits for Python between them. A step is recorded when its
shapes occur for the second time, on buffers of its own into which every batch is copied. What it gives is compared with
the step as it runs without a graph before it is used; a step that cannot be recorded, or that gives something else,
goes on without, and the log says why.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Step = Callable[..., tuple[Tensor, ...]]
"""Tensors from tensors. Parameters may be read too, from where they lie: they must be overwritten in place."""
Recorder = Callable[[Step, tuple[Tensor, ...]], Step]
"""Gives a step that does the same for inputs of the same shapes. Its results hold until it is called again."""

WARM_UPS = 3
"""Runs before recording, in which libraries allocate what they need, as the manual of CUDA graphs in torch asks."""
TOLERANCE = 1e-3
"""How far recorded results may lie from plain ones, relative to the largest element: kernels add in any order."""


def record_cuda(step: Step, inputs: tuple[Tensor, ...]) -> Step:
    """Record a step as a CUDA graph."""
    held = tuple(value.clone() for value in inputs)
    stream = torch.cuda.Stream(inputs[0].device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(inputs[0].device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            step(*held)
    torch.cuda.current_stream(inputs[0].device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(*held)

    def replay(*values: Tensor) -> tuple[Tensor, ...]:
        for buffer, value in zip(held, values, strict=True):
            buffer.copy_(value)
        graph.replay()
        return results

    return replay


RECORDERS: dict[str, Recorder] = {"cuda": record_cuda}
"""By type of device; on others nothing is recorded."""


class Replaying:
    """Runs a training step, and replays it as a CUDA graph once its shapes recur.

    Args:
        recorder: how; None never records.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._seen: Counter[object] = Counter()
        self._recorded: dict[object, Step] = {}

    def __call__(self, kind: object, step: Step, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What `step` gives for `inputs`.

        Args:
            kind: what tells the step from others whose inputs have the same shapes.
            step: the same for the same kind.
            inputs: what differs from call to call.
        """
        if self._recorder is None:
            return step(*inputs)
        key = (kind, tuple(value.shape for value in inputs))
        if key in self._recorded:
            return self._recorded[key](*inputs)
        plain = step(*inputs)
        self._seen[key] += 1
        if self._seen[key] == 2:
            self._record(key, step, inputs, plain)
        return plain

    def _record(self, key: object, step: Step, inputs: tuple[Tensor, ...], plain: tuple[Tensor, ...]) -> None:
        assert self._recorder is not None
        try:
            recorded = self._recorder(step, inputs)
            agrees = all(_close(found, wanted) for found, wanted in zip(recorded(*inputs), plain, strict=True))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch raises it for whatever cannot be recorded
            self._give_up(" ".join(str(error).split())[:200])
            return
        if agrees:
            self._recorded[key] = recorded
        else:
            self._give_up("the recorded step gave other results")

    def _give_up(self, reason: str) -> None:
        self._recorder = None
        self._recorded.clear()
        _warn_once(reason)


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning("attack steps run without CUDA graphs: %s", reason)


def _close(found: Tensor, wanted: Tensor) -> bool:
    """Whether results agree; what is not finite must be so in both."""
    finite = wanted.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return False
    scale = torch.where(finite, wanted, 0).abs().max() if wanted.numel() else 0.0
    return bool((torch.where(finite, found - wanted, 0).abs() <= TOLERANCE * scale).all())
