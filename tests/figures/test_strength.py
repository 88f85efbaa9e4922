"""The figure of an attack's strength: both budgets with what is ahead, or why that cannot be told."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import sdm_ray.figures.style as plotting
from sdm_ray.attack.findings.strength import Strength, Trend
from sdm_ray.figures.strength import strength_figure

TOLD = Trend(
    budgets=(1e9, 1e10), accuracy=(0.5, 0.52), low=(0.48, 0.5), high=(0.52, 0.55), ahead=(1e10, 1e11),
    ahead_accuracy=(0.52, 0.54), ahead_low=(0.5, 0.51), ahead_high=(0.55, 0.58),
)  # fmt: skip
SIZES = Trend(
    budgets=(20.0, 200.0), accuracy=(0.6, 0.95), low=(0.5, 0.9), high=(0.7, 1.0), ahead=(200.0, 2000.0),
    ahead_accuracy=(0.95, 1.0), ahead_low=(0.9, 0.95), ahead_high=(1.0, 1.0),
)  # fmt: skip
NOTHING = Trend(budgets=(), accuracy=(), low=(), high=(), reason="no search point finished")
ONE = Trend(budgets=(20.0,), accuracy=(0.6,), low=(float("nan"),), high=(float("nan"),), reason="fewer than 3 sizes")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    original = plotting.save_png

    def keep(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return original(figure, path)

    monkeypatch.setattr("sdm_ray.figures.strength.save_png", keep)
    return figures


def said(figure: Figure) -> str:
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize(
    ("search", "examples", "words"),
    [
        (TOLD, SIZES, ["0.54\n[0.51, 0.58]", "1.00\n[0.95, 1.00]", "FLOPs of the search", "2000", "guessing  0.50"]),
        (NOTHING, SIZES, ["cannot be told:\nno search point finished", "1.00\n[0.95, 1.00]"]),
        (TOLD, ONE, ["0.54\n[0.51, 0.58]", "cannot be told:\nfewer than 3 sizes"]),
        (NOTHING, NOTHING, ["cannot be told"]),
    ],
)
def test_it_says_what_is_expected_and_nothing_overlaps(
    tmp_path: Path, drawn: list[Figure], search: Trend, examples: Trend, words: list[str]
) -> None:
    strength = Strength(search=search, unit="FLOPs", examples=examples)
    path = strength_figure(strength, tmp_path / "strength.png", num_classes=2)
    assert path.read_bytes().startswith(b"\x89PNG")
    shown = said(drawn[0])
    for word in words:
        assert word in shown, word
    figure = drawn[0]
    legend = figure.legends[0].get_window_extent()
    titles = []
    for axes in figure.axes:
        notes = [text.get_window_extent() for text in axes.texts]
        (title,) = (part for part in axes.findobj(Text) if part.get_text() == axes.get_title(loc="left"))
        titles.append(title.get_window_extent())
        assert not legend.overlaps(axes.xaxis.label.get_window_extent())
        assert all(axes.get_window_extent().padded(2).contains(box.x0, box.y0) for box in notes)
        assert all(axes.get_window_extent().padded(2).contains(box.x1, box.y1) for box in notes)
    assert not titles[0].overlaps(titles[1])
