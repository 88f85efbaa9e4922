"""Figure of a training: harmful loss of simulated adversaries over their steps, before and after training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from sdm_ray.figures.style import FRONT, REFERENCE_STYLES, draw_chance, draw_legend, new_figure, padded_range, save_png

FIGURE = "trajectory.png"
BEFORE, AFTER = "before training", "after training"
STYLES = {BEFORE: ("--", "s", REFERENCE_STYLES["pretrained"][1]), AFTER: ("-", "o", FRONT)}
"""Line, marker and colour, so that colour is never the only distinction."""


def trajectory_figure(
    start: Mapping[int, float], end: Mapping[int, float], path: Path, *, num_classes: int, method: str = ""
) -> Path:
    """Draw the adapted harmful loss over the inner step to a PNG, atomically.

    Args:
        start: harmful losses (nats) by inner step, before training.
        end: the same after training.
        path: path of the PNG.
        num_classes: C of the harmful task; guessing has loss log C, drawn as a line. A regression has 1 and no line.
        method: training method, for the title.

    Raises:
        RunError: if the file cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    against = f" against {method}" if method else ""
    measured = "mean over adversaries of the training distribution, on examples of meta-training"
    figure, axes = new_figure(f"How far simulated adversaries get{against}", measured)
    for label, losses in ((BEFORE, start), (AFTER, end)):
        line, marker, color = STYLES[label]
        axes.plot(
            list(losses), list(losses.values()), line, marker=marker, color=color, label=label, lw=1.8, ms=6,
            mec="white",
        )  # fmt: skip
    if num_classes > 1:
        draw_chance(axes, math.log(num_classes), f"guessing: log {num_classes} =")
    axes.set_xlim(*padded_range([0, max(1, *start, *end)], 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("inner steps that the adversary has taken")
    axes.set_ylabel("harmful loss in nats  (higher is better →)")
    draw_legend(figure, axes)
    return save_png(figure, path)
