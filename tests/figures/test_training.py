"""The log and the trajectories of a training: what is written reads back, and the figure says what it shows."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

import sdm_ray.figures.style as plotting
from sdm_ray.core.errors import RunError
from sdm_ray.figures.training import trajectory_figure
from sdm_ray.trial.training_log import write_log, write_trajectory

START, END = {0: 0.7, 2: 0.5, 3: 0.3}, {0: 0.69, 2: 0.7, 3: 0.69}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they are written."""
    figures: list[Figure] = []
    original = plotting.save_png

    def keep(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return original(figure, path)

    monkeypatch.setattr("sdm_ray.figures.training.save_png", keep)
    return figures


def test_rows_of_different_metrics_share_a_table(tmp_path: Path) -> None:
    write_log([{"train/step": 1.0, "train/loss": 0.5}, {"train/step": 2.0, "validation/loss": 0.25}], tmp_path / "log")
    assert pq.read_table(tmp_path / "log").to_pydict() == {
        "train/loss": [0.5, None],
        "train/step": [1.0, 2.0],
        "validation/loss": [None, 0.25],
    }


def test_trajectories_read_back(tmp_path: Path) -> None:
    write_trajectory(START, {0: 0.69, 1: 0.7}, tmp_path / "trajectory")
    assert pq.read_table(tmp_path / "trajectory").to_pydict() == {
        "when": ["before training"] * 3 + ["after training"] * 2,
        "inner_step": [0, 2, 3, 0, 1],
        "harmful_loss": [0.7, 0.5, 0.3, 0.69, 0.7],
    }


def test_the_figure_shows_both_curves_and_what_guessing_costs(tmp_path: Path, drawn: list[Figure]) -> None:
    path = trajectory_figure(START, END, tmp_path / "trajectory.png", num_classes=3, method="MLAC")
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    before, after, chance = axes.lines
    assert [dict(zip(*line.get_data(), strict=True)) for line in (before, after)] == [START, END]
    assert chance.get_ydata()[0] == pytest.approx(math.log(3))
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "before training",
        "after training",
        "guessing: log 3 = 1.10",
    ]
    assert drawn[0].get_suptitle() == "How far simulated adversaries get against MLAC"
    looks = {(line.get_linestyle(), line.get_marker(), line.get_color()) for line in (before, after)}
    assert all(len({look[index] for look in looks}) == 2 for index in range(3)), "told apart in black and white too"
    assert [path.name for path in tmp_path.iterdir()] == ["trajectory.png"]


def test_nothing_overlaps(tmp_path: Path, drawn: list[Figure]) -> None:
    trajectory_figure(START, END, tmp_path / "trajectory.png", num_classes=2)
    drawn[0].canvas.draw()
    legend, axes = drawn[0].legends[0].get_window_extent(), drawn[0].axes[0]
    assert not legend.overlaps(axes.get_window_extent())
    assert not legend.overlaps(axes.title.get_window_extent())
    assert legend.x1 <= drawn[0].bbox.width


@pytest.mark.parametrize("losses", [[0.5], [0.5, math.nan], [0.5] * 101], ids=["one", "nan", "long"])
def test_any_trajectory_can_be_drawn_and_a_regression_has_no_chance_line(
    losses: list[float], tmp_path: Path, drawn: list[Figure]
) -> None:
    trajectory_figure(dict(enumerate(losses)), dict(enumerate(losses)), tmp_path / "trajectory.png", num_classes=1)
    assert len(drawn[0].axes[0].lines) == 2
    assert all(tick == int(tick) for tick in drawn[0].axes[0].get_xticks())


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (write_log, lambda rows, path: write_trajectory(START, END, path)):
        with pytest.raises(RunError, match=r"cannot write .*log\.parquet"):
            write([{"train/step": 1.0}], tmp_path / "file" / "log.parquet")
