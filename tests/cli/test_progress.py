"""What `sdm-ray train` shows while it works: on a terminal of 100 columns, on a narrow one, and in a log."""

from __future__ import annotations

import io
from collections.abc import Generator

import pytest
from rich.console import Console

from sdm_ray.cli import progress as progress_module
from sdm_ray.cli.progress import follow, words
from sdm_ray.core.progress import Progress

METRICS = {
    "train/step": 1200.0,
    "train/desired_loss": 0.4123,
    "train/desired_accuracy": 0.947,
    "train/adversary_loss_first": 0.71,
    "train/adversary_loss_last": 0.62,
    "train/adversary_accuracy_first": 0.52,
    "train/adversary_accuracy_last": 0.61,
    "train/adversary_learning_rate": 3e-4,
    "train/harmful_adapted_calibrated": 0.6934,
    "train/gradient_norm": 0.1,
    "train/steps_per_second": 12.34,
    "train/seconds_left": 192.2,
    "cost/memory_bytes": 2.0**29,
}
SAID = "desired 0.412 95%  calibrated 0.693  harmful 52→61%  12/s  0.5 G"


def shown(monkeypatch: pytest.MonkeyPatch, steps: list[Progress], *, width: int, terminal: bool) -> list[str]:
    """The lines on the screen at the end; a terminal keeps what was drawn last."""

    def work() -> Generator[Progress, None, str]:
        yield from steps
        return "end"

    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, highlight=False)
    monkeypatch.setattr(progress_module, "error_console", console)
    assert follow(work(), "") == "end"
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue().split("\x1b[2K")[-1] if terminal else console.file.getvalue()
    return [line.rstrip() for line in text.replace("\r", "").splitlines() if line.strip("\x1b[?25hl ")]


def test_losses_accuracies_and_costs_are_said_in_a_few_words() -> None:
    assert words("train", METRICS) == SAID
    assert words("attack", {"attack/accuracy": 0.5, "n": 20.0}) == "accuracy 0.5  n 20"


def test_every_term_pool_and_validation_has_its_words_and_unknown_metrics_are_terms_or_nothing() -> None:
    extra = {
        "train/harmful_base": 0.7, "train/harmful_adapted": 0.6, "train/adapted_grad_norm": 1.5, "train/my_term": 2.0,
        "train/pool_loss": 0.5, "train/pool_accuracy": 0.66, "validation/desired_accuracy": 0.9312, "odd": 1.0,
    }  # fmt: skip
    said = words("train", METRICS | extra)
    for part in ("base 0.700", "adapted 0.600", "adapted grad norm 1.500", "my term 2.000", "pool 66%", "val 93.1%"):
        assert f"  {part}" in said
    assert "odd" not in said
    assert words("train", {}) == ""
    assert words("train", {"train/desired_loss": float("nan")}) == "desired nan"


def test_a_terminal_of_100_columns_shows_one_whole_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for extra in ({}, {"validation/desired_accuracy": 0.931}):
        step = Progress("train", 1200, 3000, METRICS | extra)
        (line,) = shown(monkeypatch, [step], width=100, terminal=True)
        said = SAID.replace("  12/s", "  val 93.1%  12/s") if extra else SAID
        assert line.split() == f"train 1200/3000 0:03:12 {said}".split()
        assert len(line) <= 100


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_line_stays_one_line_whatever_the_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    steps = [Progress("train", done, 30000, METRICS) for done in (1000, 2000)]
    lines = shown(monkeypatch, steps, width=width, terminal=True)
    assert len(lines) == 1
    assert len(lines[0]) <= width
    assert "desired 0.41" in lines[0]
    assert ("━" in lines[0]) == (width == 140)


def test_what_was_measured_stays_until_it_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    validated = {"train/step": 1250.0, "validation/desired_accuracy": 0.9, "train/seconds_left": 180.0}
    steps = [Progress("train", 1200, 1250, METRICS), Progress("train", 1250, 1250, validated)]
    for terminal in (True, False):
        line = shown(monkeypatch, steps, width=140, terminal=terminal)[-1]
        assert "val 90.0%" in line
        assert "calibrated 0.693" in line
        assert "0:03:00" in line


def test_a_log_gets_a_line_every_ten_seconds_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([100.0 + 4 * index for index in range(7)])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(ticks))
    steps = [Progress("train", done, 7, METRICS) for done in range(1, 8)]
    lines = shown(monkeypatch, steps, width=80, terminal=False)
    assert lines == [f"train {done}/7 0:03:12 left {SAID}" for done in (1, 4, 7)]


def test_stages_without_a_time_of_their_own_still_say_one(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [Progress("train", 4, 4, METRICS), Progress("attack", 1, 9, {}), Progress("attack", 2, 9, {})]
    lines = shown(monkeypatch, steps, width=120, terminal=True)
    assert any(line.startswith("attack") and "2/9" in line for line in lines)
