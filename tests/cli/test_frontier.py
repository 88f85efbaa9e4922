"""What `sdm-ray frontier` prints where it cannot draw."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdm_ray.cli.frontier import show_frontier
from sdm_ray.core.errors import RunError
from sdm_ray.frontier.points import Point
from sdm_ray.frontier.tables import write_tables


def test_a_frontier_in_a_folder_that_may_only_be_read_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table comes first, and pictures that cannot be drawn are said; the exit code is that of a success."""
    point = Point(trial_id="t0007", method="mlac", desired=0.9, harmful=0.2)
    write_tables([point], tmp_path)
    (tmp_path / "sweep.yaml").write_text("name: colleague\n")

    def refuse(*_: object, **__: object) -> None:
        raise RunError("cannot write frontier.png: Permission denied")

    monkeypatch.setattr("sdm_ray.cli.frontier.frontier_figure", refuse)
    show_frontier(str(tmp_path))
    shown = capsys.readouterr()
    assert "t0007" in shown.out
    assert "picture " not in shown.out
    assert "no picture is drawn: cannot write frontier.png: Permission denied" in " ".join(shown.err.split())
    show_frontier(str(tmp_path), as_json=True)
    assert '"picture": null' in capsys.readouterr().out
