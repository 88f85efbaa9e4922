"""Figures show what was measured, whatever there is to show; tables hold the front and the references."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

import sdm_ray.figures.style as plotting
from sdm_ray.core.errors import RunError
from sdm_ray.core.metric_names import Metric
from sdm_ray.figures.curves import Curve, attack_curves_figure
from sdm_ray.figures.frontier import frontier_figure
from sdm_ray.figures.tables import markdown_table, pareto_table
from sdm_ray.frontier.points import Point


def point(name: str, desired: float, harmful: float, **changes: Any) -> Point:
    metrics = {}
    for number, shift in ((50, 0.02), (200, 0.08), (20, -0.1)):
        cell = Metric.harmful_accuracy(number)
        metrics |= {
            cell: harmful + shift,
            Metric.low(cell): harmful + shift - 0.01,
            Metric.high(cell): harmful + shift + 0.02,
        }
    values: dict[str, Any] = {"method": "mlac", "metrics": metrics, **changes}
    return Point(trial_id=name, desired=desired, harmful=harmful, **values)


POINTS = [
    point("t0", 0.95, 0.60, harmful_interval=(0.58, 0.63)),
    point("t1", 0.96, 0.70),
    point("t2", 0.94, 0.65),
    point("t3", 0.70, 0.55, feasible=False),
    point("t4", math.nan, 0.40),
    point("tuned", 0.961, 0.74, is_reference=True, method="tuned"),
    point("ac", 0.96, 0.735, is_reference=True, method="ac"),
    point("random", 0.30, 0.57, is_reference=True, method="random"),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they are written."""
    figures: list[Figure] = []
    original = plotting.save_png

    def keep(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return original(figure, path)

    for module in ("frontier", "curves"):
        monkeypatch.setattr(f"sdm_ray.figures.{module}.save_png", keep)
    return figures


def texts_of(figure: Figure) -> str:
    figure.canvas.draw()
    found = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return "\n".join(found)


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_the_frontier_figure_says_what_is_in_it(tmp_path: Path, drawn: list[Figure]) -> None:
    assert is_png(frontier_figure(POINTS, tmp_path / "frontier.png", chance=0.5))
    said = texts_of(drawn[0])
    for words in (
        "frontier (2)",
        "dominated (1)",
        "infeasible (1, 1 off scale)",
        "tuned (0.96, 0.74)",
        "AC (0.96, 0.73)",
        "off scale, 0.30",
        "guessing  0.50",
        "mean over n = 20, 50, 200",
        "95 % intervals",
    ):
        assert words in said, words
    assert [path.name for path in tmp_path.iterdir()] == ["frontier.png"]


def test_the_front_is_a_staircase_through_its_points(tmp_path: Path, drawn: list[Figure]) -> None:
    frontier_figure(POINTS, tmp_path / "frontier.png")
    axes = drawn[0].axes[0]
    stairs = next(line for line in axes.lines if line.get_drawstyle() == "steps-pre")
    xs, ys = list(stairs.get_xdata()), list(stairs.get_ydata())
    assert xs == [axes.get_xlim()[0], 0.95, 0.96, 0.96]
    assert ys == [0.60, 0.60, 0.70, axes.get_ylim()[1]]


def test_one_far_reference_does_not_squeeze_the_rest(tmp_path: Path, drawn: list[Figure]) -> None:
    frontier_figure(POINTS, tmp_path / "frontier.png")
    left, right = drawn[0].axes[0].get_xlim()
    assert left > 0.9
    assert right < 1.0


def test_legend_and_labels_do_not_overlap_the_axes_or_each_other(tmp_path: Path, drawn: list[Figure]) -> None:
    frontier_figure(POINTS, tmp_path / "frontier.png", chance=0.5)
    figure = drawn[0]
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    axes = figure.axes[0]
    assert not legend.overlaps(axes.get_window_extent())
    assert not legend.overlaps(axes.title.get_window_extent())
    rows = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert not any(a.overlaps(b) for i, a in enumerate(rows) for b in rows[i + 1 :])
    width = figure.bbox.width
    assert all(box.x0 >= 0 and box.x1 <= width for box in [legend, axes.title.get_window_extent()])


@pytest.mark.parametrize(
    "points",
    [
        [],
        POINTS[:1],
        POINTS[3:4],
        POINTS[-1:],
        [POINTS[4]],
        [point("a", 0.9, 0.5), point("b", 0.9, 0.5)],
        [point(f"t{i}", 0.9 + 0.0001 * i, 0.5 + 0.0004 * i) for i in range(500)],
    ],
    ids=["none", "one", "infeasible", "random", "nan", "equal", "many"],
)
def test_any_set_of_points_can_be_drawn(points: list[Point], tmp_path: Path) -> None:
    assert is_png(frontier_figure(points, tmp_path / "frontier.png"))


def test_curves_come_from_metrics_with_their_intervals() -> None:
    curve = Curve.from_point(POINTS[0], "best")
    assert curve.num_examples == (20, 50, 200)
    assert curve.accuracy == pytest.approx((0.50, 0.62, 0.68))
    assert curve.low == pytest.approx((0.49, 0.61, 0.67))
    assert curve.high == pytest.approx((0.52, 0.64, 0.70))


def test_attack_curves_show_every_model_and_its_intervals(tmp_path: Path, drawn: list[Figure]) -> None:
    curves = [Curve.from_point(POINTS[0], "best"), Curve.from_point(POINTS[-1], "random")]
    bare = Curve(label="x", num_examples=(20,), accuracy=(math.nan,), low=(math.nan,), high=(math.nan,))
    assert is_png(attack_curves_figure([*curves, bare], tmp_path / "curves.png", chance=0.5))
    said = texts_of(drawn[0])
    for words in ("best", "random", "guessing  0.50", "95 % intervals"):
        assert words in said
    container = drawn[0].axes[0].containers[0]
    (segments,) = (bars.get_segments() for bars in container[2])
    assert [tuple(segment[:, 1]) for segment in segments] == [
        pytest.approx(ends) for ends in ((0.49, 0.52), (0.61, 0.64), (0.67, 0.70))
    ]


def test_pyplot_is_not_used(tmp_path: Path) -> None:
    sys.modules.pop("matplotlib.pyplot", None)
    frontier_figure(POINTS, tmp_path / "frontier.png")
    assert "matplotlib.pyplot" not in sys.modules


def test_a_figure_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*frontier\.png"):
        frontier_figure(POINTS, tmp_path / "file" / "frontier.png")


def test_tables_hold_front_and_references_only() -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(pareto_table(POINTS))
    said = console.export_text()
    assert said.index("t1") < said.index("t0") < said.index("tuned") < said.index("random")
    assert "t2" not in said
    assert "5 trials, 2 on the front" in said
    lines = [line.split() for line in said.splitlines() if line]
    assert lines[1] == ["trial", "method", "desired", "harmful", "n=20", "n=50", "n=200"]
    assert ["t1", "MLAC", "0.960", "0.700", "0.600", "0.720", "0.780"] in lines
    rows = [line[0] for line in lines[2:-1] if len(line) == 7]
    assert rows == ["t1", "t0", "tuned", "ac", "random"]


def test_tables_have_what_training_cost_where_it_is_known() -> None:
    """Results of before it was counted have a dash."""
    costs = {Metric.COST_TRAIN_SECONDS: 61.7, Metric.COST_TRAIN_TEXTS: 12345.0, Metric.COST_TRAIN_FLOPS: 3.21e15}
    paid = Point(
        trial_id="t0",
        method="mlac",
        desired=0.9,
        harmful=0.5,
        metrics={str(name): value for name, value in costs.items()},
    )
    old = Point(trial_id="tuned", method="tuned", desired=0.8, harmful=0.6, is_reference=True)
    lines = markdown_table([paid, old], max_characters=1000).splitlines()
    assert lines[0].split(" | ")[-3:] == ["train s", "texts", "FLOPs |"]
    assert lines[2].split(" | ")[-3:] == ["61.7", "12.3k", "3.21P |"]
    assert lines[3].split(" | ")[-3:] == ["-", "-", "- |"]
    for costly, count in ((True, 7), (False, 4)):
        assert len(pareto_table([paid, old], costs=costly).columns) == count


def test_points_that_the_final_attack_left_out_are_told_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    points = [point("t0", 0.9, 0.6), point("t1", 0.95, 0.5, superseded=True), point("t2", 0.8, 0.7)]
    frontier_figure(points, tmp_path / "frontier.png")
    said = texts_of(drawn[0])
    for words in ("frontier (1)", "dominated (1)", "not attacked again (1)"):
        assert words in said


def test_a_name_does_not_steer_the_terminal() -> None:
    """A table may be somebody else's."""
    named = Point(trial_id="[red]a[/red]\x1b[31m\nb", method="mlac", desired=0.9, harmful=0.5)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(pareto_table([named]))
    assert "[red]a[/red]\ufffd[31m b" in shown.get()
    assert len(markdown_table([named], max_characters=1000).splitlines()) == 3
