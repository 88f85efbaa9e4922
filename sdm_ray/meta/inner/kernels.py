"""The inner loop's step functions under `torch.compile`.

Autograd cannot differentiate twice through a compiled function. Each kernel therefore nests `torch.func` transforms and
recomputes its step instead of keeping a graph. On CUDA the kernels are captured as CUDA graphs. Every input shape
needs a compilation of its own, so the caller pads text widths and numbers of embedding rows to powers of two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdm_ray.core.notices import notice
from sdm_ray.core.types import Batch
from sdm_ray.meta.inner.head_reader import Outputs
from sdm_ray.meta.inner.problems import Base, TrunkProblem

Inputs = tuple[Tensor, ...]
MAX_SHAPES = 4096
MAX_CUT_OFF = 8
"""Most truncated libraries in the compiler's cache that one call removes."""
_LIBRARY = re.compile(r"(/[^\s:'\"]+\.so)\b")


class Kernels:
    """Compiled functions of one problem.

    Args:
        problem: loss and outputs of the adversaries; it holds no data.
        device: where the kernels run.
    """

    def __init__(self, problem: TrunkProblem, device: torch.device) -> None:
        self._problem = problem
        mode = "reduce-overhead" if device.type == "cuda" else "default"

        def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
            kernel = torch.compile(function, fullgraph=True, dynamic=False, mode=mode)

            def call(*values: Any) -> Any:
                # All problems and shapes share this function: more recompilations than torch allows by default.
                with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES, accumulated_recompile_limit=MAX_SHAPES):
                    return kernel(*values)

            return partial(mended, call)

        self._gradient, self._products = compiled(self._eager_gradient), compiled(self._eager_products)
        self._outputs = compiled(self._eager_outputs)
        self._backward_outputs = compiled(self._eager_backward_outputs)

    def gradient(self, variables: Tensor, base: Base, batch: Batch) -> Tensor:
        """(A, N) gradients of the adversaries' losses on a batch (A, B, ·)."""
        gradient: Tensor = _own(self._gradient(variables, base, batch.inputs, batch.labels))
        return gradient

    def products(self, variables: Tensor, base: Base, batch: Batch, vectors: Tensor) -> tuple[Tensor, ...]:
        """Vector-Jacobian products of `gradient` with vectors (M, A, N): for the variables, then each base tensor."""
        found: tuple[Tensor, ...] = _own(self._products(variables, base, batch.inputs, batch.labels, vectors))
        return found

    def outputs(self, variables: Tensor, base: Base, inputs: Inputs, head: Tensor | None) -> Outputs:
        """Outputs on inputs (B, ·) with the adversaries' heads, or with a fixed head (C, D)."""
        return Outputs(*_own(self._outputs(variables, base, inputs, head)))

    def backward_outputs(
        self, variables: Tensor, base: Base, inputs: Inputs, head: Tensor | None, cotangents: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """Backward of `outputs`: cotangents of variables and base, from M cotangents of features (M, A, B, D) and of
        logits (M, A, B, C)."""
        found: tuple[Tensor, ...] = _own(self._backward_outputs(variables, base, inputs, head, cotangents))
        return found

    def stack(self, cotangents: Sequence[Outputs | None]) -> tuple[Tensor, Tensor] | None:
        """Stack M cotangents of outputs as one pair, with zeros for missing ones; None if all are missing."""
        present = [value for value in cotangents if value is not None]
        if not present:
            return None
        features = [value.features for value in present if value.features is not None]
        logits = [value.logits for value in present if value.logits is not None]
        lead = (features or logits)[0]
        blanks = [
            lead.new_zeros(*lead.shape[:-1], size) for size in (self._problem.feature_dim, self._problem.num_classes)
        ]
        pairs = [(None, None) if value is None else value for value in cotangents]
        filled = [[blank if part is None else part for blank, part in zip(blanks, pair, strict=True)] for pair in pairs]
        return torch.stack([pair[0] for pair in filled]), torch.stack([pair[1] for pair in filled])

    def _eager_gradient(self, variables: Tensor, base: Base, inputs: Inputs, labels: Tensor) -> Tensor:
        batch = Batch(inputs, labels)
        result: Tensor = torch.func.grad(lambda moved: self._problem.batch_loss(base, moved, batch).sum())(variables)
        return result

    def _eager_products(
        self, variables: Tensor, base: Base, inputs: Inputs, labels: Tensor, vectors: Tensor
    ) -> tuple[Tensor, ...]:
        def gradient(moved: Tensor, moved_base: Base) -> Tensor:
            return self._eager_gradient(moved, moved_base, inputs, labels)

        pull = torch.func.vjp(gradient, variables, base)[1]
        return _stacked([pull(vector) for vector in vectors.unbind(0)])

    def _eager_outputs(
        self, variables: Tensor, base: Base, inputs: Inputs, head: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        found = self._problem.outputs_on(base, variables, inputs, head)
        return found.features, found.logits

    def _eager_backward_outputs(
        self, variables: Tensor, base: Base, inputs: Inputs, head: Tensor | None, cotangents: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        def outputs(moved: Tensor, moved_base: Base) -> tuple[Tensor, Tensor]:
            return self._eager_outputs(moved, moved_base, inputs, head)

        pull = torch.func.vjp(outputs, variables, base)[1]
        return _stacked([pull(pair) for pair in zip(*(value.unbind(0) for value in cotangents), strict=True)])


def mended(call: Callable[..., Any], *values: Any) -> Any:
    """Call a compiled function. A library that a killed compiler left truncated is removed and compiled again."""
    for _ in range(MAX_CUT_OFF):
        try:
            return call(*values)
        except Exception as error:
            removed = remove_cut_off(error)
            if removed is None:
                raise
            notice(f"{removed} was cut off when a compiler was killed; it is compiled again")
            torch._dynamo.reset()
    return call(*values)


def remove_cut_off(error: BaseException) -> Path | None:
    """Remove the library in the compiler's cache that an error names if its file is truncated; returns its path."""
    cause: BaseException | None = error
    while cause is not None:
        for name in _LIBRARY.findall(str(cause)):
            path = Path(name)
            if _cache_folder() in path.parents and path.is_file() and _is_cut_off(path, str(cause)):
                path.unlink(missing_ok=True)
                return path
        cause = cause.__cause__ or cause.__context__
    return None


def _is_cut_off(path: Path, said: str) -> bool:
    with path.open("rb") as file:
        whole = file.read(4) == b"\x7fELF"
    return not whole or any(
        words in said for words in ("file too short", "invalid ELF header", "cannot read file data")
    )


def _cache_folder() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def _stacked(pulled: list[tuple[Tensor, Base]]) -> tuple[Tensor, ...]:
    flat = [(variables, *base) for variables, base in pulled]
    return tuple(torch.stack(column) for column in zip(*flat, strict=True))


def _own(values: Any) -> Any:
    """Copies of the outputs of a CUDA graph, because its next replay overwrites them."""
    if isinstance(values, Tensor):
        return values.clone() if values.is_cuda else values
    return tuple(_own(value) for value in values)
