"""Choosing a gradient mode by the memory that it takes, and falling back where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from sdm_ray.core.errors import RunError

logger = logging.getLogger(__name__)

T = TypeVar("T")

SHARE = 0.5
"""Share of the free memory that kept graphs may take."""


class ModeChooser:
    """Resolves the gradient mode `auto`: graphs are kept where they fit, else every step is computed again.

    The two agree to the bit, so the choice changes time and memory alone. What an episode would take is measured once
    for each of its shapes.

    Args:
        device: where the loops run.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._choices: dict[object, str] = {}
        self._exhausted = False

    def run(self, mode: str, measure: Callable[[], int], work: Callable[[str], T], *, key: object = None) -> T:
        """Run `work(mode)`; where memory runs out with kept graphs, run it again without keeping them.

        Args:
            mode: of the settings.
            measure: bytes that keeping the graphs would take; called for `auto` alone.
            work: the episode in a mode other than `auto`.
            key: episodes with equal keys take the same memory.

        Raises:
            RunError: when memory runs out without kept graphs too.
        """
        chosen = self._choose(measure, key) if mode == "auto" else mode
        try:
            return work(chosen)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if chosen not in ("adjoint_stored", "unrolled"):
                raise RunError(
                    f"an inner loop does not fit into the memory of {self._device} even in gradient mode {chosen!r}; "
                    "lower train.adversary.batch_sizes, train.adversary.num_steps or data.max_length"
                ) from error
        logger.warning("gradient mode %r ran out of memory on %s; going on with 'adjoint'", chosen, self._device)
        self._exhausted = True
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return self.run("adjoint", measure, work)

    def _choose(self, measure: Callable[[], int], key: object) -> str:
        if self._exhausted:
            return "adjoint"
        if key not in self._choices:
            needed, free = measure(), free_bytes(self._device)
            self._choices[key] = "adjoint_stored" if free is None or needed <= SHARE * free else "adjoint"
        return self._choices[key]


def free_bytes(device: torch.device) -> int | None:
    """Bytes of free memory on a device; None where they are unknown."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def saved_bytes(work: Callable[[], object], known: tuple[Tensor, ...] = ()) -> int:
    """Bytes of the tensors that autograd saves while `work` runs, each storage counted once, those of `known` not."""
    sizes: dict[int, int] = {}
    ignored = {value.untyped_storage().data_ptr() for value in known}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in ignored:
            sizes[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        kept = work()
    del kept
    return sum(sizes.values())


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    named = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return named or "not enough memory" in text or "can't allocate memory" in text
