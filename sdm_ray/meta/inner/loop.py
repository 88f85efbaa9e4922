"""Meta-gradients through the inner loops of simulated adversaries: the front door of this folder.

A gradient mode names a strategy; each strategy is a file of its own that says what it costs and what it lacks:

| mode | gradient | file |
| --- | --- | --- |
| `unrolled` | exact, by autograd through the whole loop: the reference | `unrolled.py` |
| `adjoint` | exact, step by step backward, every step computed again | `adjoint.py` |
| `adjoint_stored` | the same to the bit, with the graphs of all steps kept | `adjoint.py` |
| `truncated` | through the last updates alone | `truncated.py` |
| `first_order` | through no update | `first_order.py` |

The mode `auto` is `adjoint_stored` where its graphs fit into memory, else `adjoint` (`memory.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdm_ray.meta.inner.adjoint import adjoint, adjoint_stored
from sdm_ray.meta.inner.episode import Episode, Execution, MetaGradients, Start
from sdm_ray.meta.inner.first_order import first_order
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.inner.head_reader import Outputs
from sdm_ray.meta.inner.memory import ModeChooser
from sdm_ray.meta.inner.prepared import LoopGradients, PreparedEpisode, Strategy
from sdm_ray.meta.inner.readout import BESIDE, Readout, StackedOutputs, fixed_head_gradient, predictor_gradient
from sdm_ray.meta.inner.truncated import truncated
from sdm_ray.meta.inner.unrolled import unrolled
from sdm_ray.meta.objectives import Trajectory

STRATEGIES: dict[str, Strategy] = {
    "unrolled": unrolled,
    "adjoint": adjoint,
    "adjoint_stored": adjoint_stored,
    "truncated": truncated,
    "first_order": first_order,
}
"""Gradient modes other than `auto`."""
EXACT = ("unrolled", "adjoint", "adjoint_stored")
"""Modes whose gradients are those of the whole loop."""


def meta_gradients(
    model: FlatModel,
    start: Start,
    episode: Episode,
    weights: dict[str, float],
    *,
    predictors: Tensor | None = None,
    execution: Execution | None = None,
) -> MetaGradients:
    """Simulate A adversaries and take all meta-gradients.

    The trunk's gradient is that of the blocking loss, the adversaries' that of their own, uncalibrated loss.

    Args:
        model: the trunk as a function.
        start: leaves; the trunk requires gradients, head and learning rate where they are meta-learned.
        episode: what the adversaries do, and the gradient mode.
        weights: blocking terms and their weights.
        predictors: (K+1, C, D), where a term reads them.
        execution: how the loop is computed.
    """
    execution = execution or Execution()
    prepared = PreparedEpisode(model, start, episode, weights, predictors=predictors, execution=execution)
    mode = "adjoint" if execution.compiled and episode.mode == "auto" else episode.mode
    found = (execution.chooser or ModeChooser()).run(
        mode, prepared.stored_bytes, lambda chosen: STRATEGIES[chosen](prepared), key=prepared.memory_key()
    )
    gradients = _with_other_heads(found, prepared.readout)
    if episode.rows is not None:
        gradients = gradients._replace(trunk=model.expand(gradients.trunk, episode.rows))
    return gradients


def evaluate(model: FlatModel, start: Start, episode: Episode, *, execution: Execution | None = None) -> Trajectory:
    """Simulate A adversaries without gradients; their outputs at the evaluated steps, adversary after adversary.

    The arguments are those of `meta_gradients`; the episode's mode does not matter.
    """
    execution = execution or Execution()
    prepared = PreparedEpisode(model, start, episode, {}, execution=execution)
    return (execution.chooser or ModeChooser()).run("first_order", prepared.stored_bytes, lambda _: _evaluate(prepared))


def displacement(model: FlatModel, start: Start, episode: Episode, *, execution: Execution | None = None) -> Tensor:
    """(A, P) by how much A adversaries that train the whole model move the trunk, without gradients.

    The arguments are those of `meta_gradients`; the episode's mode does not matter, and nothing need be evaluated.
    """
    execution = execution or Execution()
    prepared = PreparedEpisode(model, start, episode, {}, execution=execution)
    trunk = prepared.start.trunk.detach()
    final = (execution.chooser or ModeChooser()).run(
        "first_order", prepared.stored_bytes, lambda _: _steps(prepared)[1]
    )
    moved = final[:, : trunk.shape[1]] - trunk
    return moved if episode.rows is None else model.expand(moved, episode.rows)


def _evaluate(episode: PreparedEpisode) -> Trajectory:
    return episode.readout.trajectory(StackedOutputs.of(_steps(episode)[0], episode.evaluated))


def _steps(episode: PreparedEpisode) -> tuple[list[tuple[Outputs, ...]], Tensor]:
    """Outputs at the evaluated steps, and variables (A, N) after the last step."""
    with torch.no_grad():
        variables, base = episode.begin()
    return episode.inner_loop(base, num_differentiated=0).evaluate(variables)


def _with_other_heads(found: LoopGradients, readout: Readout) -> MetaGradients:
    """A strategy's gradients, and those of the heads that are no part of the loop: predictors and a fixed head."""
    trajectory = readout.trajectory(found.outputs)
    beside = len(readout.evaluation) > BESIDE
    return MetaGradients(
        trunk=found.trunk,
        head=found.head,
        log_learning_rate=found.log_learning_rate,
        predictors=predictor_gradient(readout, found.outputs) if readout.reads("predicted") else None,
        fixed_head=fixed_head_gradient(readout, found.outputs) if beside else None,
        values=found.values,
        trajectory=trajectory._replace(logits=trajectory.logits.detach(), features=trajectory.features.detach()),
        final=found.final.detach(),
        final_state=found.final_state,
    )
