"""The benchmark of inner loops runs, counts what it says, and refuses to time loops that do other work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sdm_ray.config import DataSettings
from tests.benchmarks import erasure
from tests.benchmarks.inner_loop import __main__ as inner_loop
from tests.benchmarks.inner_loop.floor import EXACT, agreement, count_flops
from tests.benchmarks.inner_loop.ours import BESIDE, OURS
from tests.benchmarks.inner_loop.theirs import THEIRS
from tests.benchmarks.inner_loop.turns import FULL_SUFFIX, Child, Job, _peak, _reset_peak
from tests.benchmarks.inner_loop.world import CLASSES, QUICK
from tests.meta.test_trainer import text_world

JOB = Job("adjoint", "two", 2, "fixed", "cpu", threads=1, quick=True)
EAGER = tuple(name for name in (*THEIRS, *OURS, *BESIDE) if name not in ("higher_cvx", "adjoint_compiled"))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The command sets the number of threads."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.parametrize("name", EAGER)
def test_every_loop_runs_on_texts_of_real_lengths(name: str) -> None:
    job = JOB._replace(case=name, lengths="real")
    job.make(job.world())()


def test_the_convex_layer_runs_where_it_is_installed() -> None:
    pytest.importorskip("cvxpylayers")
    job = JOB._replace(case="higher_cvx", walk="paper")
    gradients = job.make(job.world())()
    assert all(value is None or value.isfinite().all() for value in gradients)


def test_loops_that_do_the_same_work_agree() -> None:
    cosines = agreement(JOB, [name for name in EXACT if name != "adjoint_compiled"])
    assert min(cosines.values()) > 0.999


def test_a_loop_that_does_other_work_is_not_timed() -> None:
    with pytest.raises(SystemExit, match="first_order has a cosine of"):
        agreement(JOB, ["first_order"])


def test_padding_changes_the_width_and_nothing_else() -> None:
    real = JOB._replace(lengths="real", case="plain")
    longest, full = (real._replace(case=name).world() for name in ("plain", "plain" + FULL_SUFFIX))
    widths = [batch.input_ids.shape[-1] for batch in longest.inner]
    assert min(widths) < QUICK.longest
    for width, short, long in zip(widths, longest.inner, full.inner, strict=True):
        assert long.input_ids.shape[-1] == QUICK.longest
        for some, more in zip(short.inputs, long.inputs, strict=True):
            assert torch.equal(more[..., :width], some)
            assert not more[..., width:].any()


def test_flops_of_an_outer_loss_are_those_of_its_matrix_products() -> None:
    """Two for each multiplication of the projections, of attention, of the pooler and of the head."""
    shape, tokens = QUICK, QUICK.outer * QUICK.fixed
    layer = 2 * tokens * (4 * shape.hidden**2 + 2 * shape.hidden * shape.intermediate)
    layer += 4 * tokens * shape.fixed * shape.hidden
    ends = 2 * shape.outer * (shape.hidden**2 + shape.hidden * CLASSES)
    flops = count_flops(JOB.world("meta"), shortcut=False)
    assert flops.forwards == (JOB.num_steps + 1) * (shape.layers * layer + ends)
    assert flops.work(2) - flops.work(1) == flops.backwards + flops.products
    assert count_flops(JOB.world("meta"), shortcut=True).forwards < flops.forwards


def test_memory_that_was_freed_again_counts_towards_the_peak() -> None:
    base = _reset_peak(torch.device("cpu"))
    torch.ones(2**24).sum()
    assert _peak(torch.device("cpu")) - base > 2**25


def test_the_command_prints_a_table_and_writes_all_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class StandsIn:
        def __init__(self, job: Job) -> None:
            pass

        def answer(self, request: str | None = None) -> object:
            return {"seconds": 0.5, "bytes": 2.0**30}

        def close(self) -> None:
            pass

    def child(job: Job) -> Child | StandsIn:
        return StandsIn(job) if job.case == "plain" else Child(job)  # one process shows what two would

    monkeypatch.setattr("tests.benchmarks.inner_loop.turns.Child", child)
    monkeypatch.setattr(inner_loop, "missing_package", lambda case: "cvxpylayers" if case == "higher_cvx" else None)
    path = tmp_path / "figures.json"
    chosen = ["--cases", "plain,higher_cvx,adjoint", "--walks", "two", "--steps", "2", "--repeats", "1"]
    rows = tmp_path / "rows.jsonl"
    inner_loop.main(["--quick", "--threads", "1", *chosen, "--json", str(path), "--rows", str(rows)])
    table = capsys.readouterr().out
    assert "| higher_cvx | not installed: pip install cvxpylayers |" in table
    (figures,) = json.loads(path.read_text(encoding="utf-8"))["tables"]
    for name in ("plain", "adjoint"):
        assert f"\n| {name} | " in table
        assert len(figures["rows"][name]["seconds"]) == 1
    assert figures["rows"]["plain"]["num_bytes"] == 2**30
    assert figures["rows"]["adjoint"]["num_bytes"] > 0


def test_a_run_that_is_stopped_leaves_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedAtTheFifthTurn:
        asked = 0

        def __init__(self, job: Job) -> None:
            pass

        def answer(self, request: str | None = None) -> object:
            StoppedAtTheFifthTurn.asked += request == "turn"
            if StoppedAtTheFifthTurn.asked == 5:
                raise KeyboardInterrupt
            return {"seconds": 0.5, "bytes": 2.0**30}

        def close(self) -> None:
            pass

    monkeypatch.setattr("tests.benchmarks.inner_loop.turns.Child", StoppedAtTheFifthTurn)
    monkeypatch.setattr(inner_loop, "missing_package", lambda case: "higher" if case == "higher" else None)
    path = tmp_path / "deep" / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        inner_loop.main(["--quick", "--cases", "plain,adjoint", "--walks", "two", "--steps", "2", "--rows", str(path)])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    measured = [(row["case"], row["round"], row["seconds"]) for row in rows]
    assert measured == [("plain", 0, 0.5), ("adjoint", 0, 0.5), ("plain", 1, 0.5), ("adjoint", 1, 0.5)]
    assert "K = 2, walk `two`, round 1: adjoint 0.500 s, 1.00 GB" in capsys.readouterr().out


def test_memory_grows_by_the_difference_of_peaks() -> None:
    def table(num_steps: int, peak: float) -> dict[str, object]:
        rows = {"adjoint": {"seconds": (1.0,), "num_bytes": peak}}
        return {"walk": "two", "num_steps": num_steps, "three_vectors_bytes": 10 * num_steps, "rows": rows}

    (line,) = inner_loop.memory_growth([table(4, 100.0), table(2, 40.0)])
    assert line == {"walk": "two", "mode": "adjoint", "bytes": 30.0, "three_vectors": 40, "kept": 60.0}


def test_training_is_timed_with_and_without_erasure(bert_folder: Path, data_settings: DataSettings) -> None:
    """The same step otherwise; only that of the second takes directions out."""
    trunk, data = text_world(bert_folder, data_settings)
    weights = [value.clone() for value in trunk.parameters()]
    cost = erasure.measure(trunk, data, erasure.random_erasure(trunk, 2), {"method": "erase"}, steps=1, rounds=1)
    assert cost.plain > 0
    assert cost.ratio == cost.erased / cost.plain
    assert all(torch.equal(old, new) for old, new in zip(weights, trunk.parameters(), strict=True))
