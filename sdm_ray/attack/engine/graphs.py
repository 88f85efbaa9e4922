"""CUDA graphs of training steps whose input shapes recur: one launch for all kernels of a step.

A step of a small model is hundreds of short kernels, and the GPU waits for Python between them. A step is recorded when
its shapes occur for the second time; at each replay the batch is copied into the recorded input buffers. The recorded
step's results are compared with those of the eager step before it is used. If a step cannot be recorded or gives other
results, all steps run eagerly from then on, and the log gives the reason.
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
"""Function from tensors to tensors. It may read parameters too, which must then be updated in place."""
Recorder = Callable[[Step, tuple[Tensor, ...]], Step]
"""Function (step, inputs) -> equivalent step for inputs of the same shapes. Its outputs are valid until the next
call."""

WARM_UPS = 3
"""Warm-up runs before the recording, in which libraries allocate memory, as torch's documentation requires."""
TOLERANCE = 1e-3
"""Largest deviation of recorded results from eager ones, relative to the largest element: kernels may sum in any
order."""


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
"""Recorder by device type; on other devices nothing is recorded."""


class Replaying:
    """Runs training steps, and replays them as CUDA graphs when their shapes recur.

    Args:
        recorder: function that records a step; None never records.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._seen: Counter[object] = Counter()
        self._recorded: dict[object, Step] = {}

    def __call__(self, kind: object, step: Step, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The results of `step(*inputs)`.

        Args:
            kind: a key that distinguishes steps whose inputs have the same shapes.
            step: the function; it must be equivalent for equal `kind`.
            inputs: tensors that change from call to call.
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
        except RuntimeError as error:  # torch raises it for anything that cannot be recorded
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
    """Whether results agree within `TOLERANCE`; the same elements must be finite in both."""
    finite = wanted.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return False
    scale = torch.where(finite, wanted, 0).abs().max() if wanted.numel() else 0.0
    return bool((torch.where(finite, found - wanted, 0).abs() <= TOLERANCE * scale).all())
