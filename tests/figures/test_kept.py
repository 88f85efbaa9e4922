"""The picture of head starts kept: what it shows, that it is readable, and that nothing known means no file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

import sdm_ray.figures.style as plotting
from sdm_ray.core.metric_names import Metric
from sdm_ray.figures.kept import kept_figure
from sdm_ray.figures.kinds import kinds
from sdm_ray.figures.page import page_data
from sdm_ray.figures.tables import pareto_table
from sdm_ray.frontier.points import Point
from sdm_ray.sweep.frontier_writer import FrontierWriter


def point(name: str, good: float, harmful: float, *, width: float = 0.05, **changes: Any) -> Point:
    """A point that keeps so much; its objectives follow from that."""
    key = changes.pop("key", Metric.KEPT_BENIGN)
    metrics: dict[str, float] = {}
    for name_of, value in ((key, good), (Metric.KEPT_HARMFUL, harmful)):
        metrics |= {name_of: value, Metric.low(name_of): value - width, Metric.high(name_of): value + width}
    metrics |= changes.pop("more", {})
    values: dict[str, Any] = {"method": "mlac", "desired": 0.5 + 0.4 * good, "harmful": 0.5 + 0.4 * harmful}
    return Point(trial_id=name, metrics={str(n): v for n, v in metrics.items()}, **values | changes)


SCRATCH = {Metric.SCRATCH_DOMINATES: 1.0}
POINTS = [
    point("t0", 0.9, 0.2),
    point("t1", 0.6, 0.1),
    point("t2", 0.5, 0.6),
    point("t3", -0.1, 0.05, more=SCRATCH),
    point("t4", 0.7, 0.9, feasible=False),
    point("t5", 7.0, 0.3, desired=0.4),
    Point(trial_id="old", method="mlac", desired=0.5, harmful=0.9),
    point("tuned", 0.95, 0.8, method="tuned", is_reference=True),
    Point(trial_id="random", method="random", desired=0.3, harmful=0.5, is_reference=True),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    original = plotting.save_png

    def keep(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return original(figure, path)

    for module in ("kept", "frontier"):
        monkeypatch.setattr(f"sdm_ray.figures.{module}.save_png", keep)
    return figures


def texts_of(figure: Figure) -> str:
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_every_group_reference_and_corner_is_named(tmp_path: Path, drawn: list[Figure]) -> None:
    assert kept_figure(POINTS, tmp_path / "kept.png") == tmp_path / "kept.png"
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")
    said = texts_of(drawn[0])
    for words in (
        "ideal (1, 0)", "frontier (2)", "dominated (2, 1 off scale)", "no better than scratch (1)", "infeasible (1)",
        "tuned (0.95, 0.80)", "pretrained (1, 1)", "from scratch (0, 0)", "forgetting", "blocking",
        "kept on benign tasks", "1 trials without both numbers", "95 % intervals",
    ):  # fmt: skip
        assert words in said, words
    assert "random" not in said


def test_measured_corners_take_the_place_of_those_by_definition(tmp_path: Path, drawn: list[Figure]) -> None:
    public = point("pretrained", 0.98, 1.02, method="pretrained", is_reference=True)
    kept_figure([*POINTS, public], tmp_path / "kept.png")
    said = texts_of(drawn[0])
    assert "pretrained (0.98, 1.02)" in said
    assert "pretrained (1, 1)" not in said


def test_the_desired_task_stands_in_and_the_axis_says_so(tmp_path: Path, drawn: list[Figure]) -> None:
    kept_figure([point("t0", 0.9, 0.2, key=Metric.KEPT_DESIRED)], tmp_path / "kept.png")
    assert drawn[0].axes[0].get_xlabel().startswith("head start kept on the desired task")


def test_wide_intervals_do_not_squeeze_the_rest(tmp_path: Path, drawn: list[Figure]) -> None:
    kept_figure([point("t0", 0.9, 0.2, width=30.0)], tmp_path / "kept.png")
    axes = drawn[0].axes[0]
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert low < 0 < 1 < high
        assert high - low < 2.5


@pytest.mark.parametrize("points", [[], POINTS[6:7], POINTS[-1:], [point("nan", math.nan, 0.4)]])
def test_without_both_numbers_there_is_no_file(points: list[Point], tmp_path: Path) -> None:
    assert kept_figure(points, tmp_path / "kept.png") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 6, 60])
def test_legend_axes_and_labels_keep_apart(count: int, tmp_path: Path, drawn: list[Figure]) -> None:
    many = [point(f"t{i}", (7 * i % count) / count, (3 * i % count) / count) for i in range(count)]
    kept_figure([*many, *POINTS[3:]], tmp_path / "kept.png")
    figure = drawn[0]
    figure.canvas.draw()
    axes, legend = figure.axes[0], figure.legends[0].get_window_extent()
    assert not legend.overlaps(axes.get_window_extent())
    boxes = [legend, axes.title.get_window_extent(), axes.yaxis.label.get_window_extent()]
    boxes.append(axes.xaxis.label.get_window_extent())
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)


def test_kinds_are_told_apart_once_for_every_picture() -> None:
    expected = ["front", "front", "dominated", "scratch", "infeasible", "dominated", "dominated"]
    assert kinds(POINTS) == [*expected, "reference", "reference"]


def test_what_the_audit_holds_back_is_told_apart() -> None:
    held = point("t9", 0.5, 0.1, feasible=False, more={Metric.AUDIT_PASSED: 0.0})
    assert kinds([*POINTS, held])[-1] == "audit"
    assert page_data([held], title="s")["points"][0]["kind"] == "audit"
    lines = [" ".join(line) for line in shown([*POINTS, held], 160)]
    assert any(line.startswith("t9 MLAC (held back by the audit) 0.700") for line in lines), lines
    assert any("on the front, 1 held back by the audit" in line for line in lines), lines


def test_the_page_has_shares_with_intervals_and_says_which_axis() -> None:
    data = page_data(POINTS, title="s")
    entries = {entry["id"]: entry for entry in data["points"]}
    assert data["kept"] == "benign tasks"
    assert entries["t3"]["kind"] == "scratch"
    assert entries["t0"]["kx"] == 0.9
    assert entries["t0"]["kyi"] == pytest.approx([0.15, 0.25])
    assert (entries["old"]["kx"], entries["old"]["kxi"]) == (None, None)
    assert page_data(POINTS[6:7], title="s")["kept"] is None


def shown(points: list[Point], width: int = 120) -> list[list[str]]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(pareto_table(points))
    return [line.split() for line in console.export_text().splitlines() if line]


def test_the_table_has_columns_of_what_is_kept_where_it_is_known() -> None:
    lines = shown(POINTS)
    assert lines[1] == ["trial", "method", "desired", "harmful", "kept", "benign", "kept", "harmful"]
    assert ["t0", "MLAC", "0.860", "0.580", "0.90±0.05", "0.20±0.05"] in lines
    assert ["random", "random", "0.300", "0.500", "-", "-"] in lines
    assert shown(POINTS[6:7])[1] == ["trial", "method", "desired", "harmful"]
    assert "desired" in shown([point("t", 0.9, 0.2, key=Metric.KEPT_DESIRED)])[1][4:]


def test_a_sweep_writes_the_picture_among_its_published_files(tmp_path: Path) -> None:
    writer = FrontierWriter(tmp_path, warn=pytest.fail, pause_seconds=0.0)
    writer.update(POINTS)
    writer.close()
    assert "kept.png" in {file.name for file in writer.files}
    old = FrontierWriter(tmp_path / "old", warn=pytest.fail, pause_seconds=0.0)
    (tmp_path / "old").mkdir()
    old.update(POINTS[6:7])
    old.close()
    assert "frontier.png" in {file.name for file in old.files}
    assert not (tmp_path / "old" / "kept.png").exists()
