"""The suites: claims that were written down, intervals that decide them, and files that say what was measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from sdm_ray.attack.report import AttackRecord, AttackReport, Cell
from sdm_ray.cli import main, options
from sdm_ray.config import SweepSettings, load_settings
from sdm_ray.core.errors import UsageError
from sdm_ray.figures.style import model_styles
from sdm_ray.reproduce import SUITES, Measured, judge, read_measured, suite_settings, write_reproduction
from sdm_ray.reproduce.claims import Blocking, Claim, DesiredDrop, HarmfulDifference, HeadStart, Kept, LongHeadStart
from sdm_ray.reproduce.measured import WORST, Estimate, Released
from sdm_ray.reproduce.write import leaderboard, model_curve, table_rows
from sdm_ray.sweep.search.check import check_sweep
from sdm_ray.sweep.search.models import ordered_references, reference_settings
from tests import ROOT

SWEEPS = ROOT / "sweeps"
SIZES = (20, 200)


def cell(family: str, size: int, accuracy: float) -> Cell:
    return Cell(
        num_examples=size, family=family, valid=not math.isnan(accuracy), reason="", winner=None, accuracy=accuracy,
        accuracy_low=accuracy, accuracy_high=accuracy, plain_accuracy=accuracy, macro_f1=accuracy, loss=0.5,
        raw_loss=0.5, mutual_information=0.1, val_accuracy=accuracy,
        seed_accuracies=(accuracy,), seed_losses=(0.5,), num_missing=0, mean_search_accuracy=accuracy,
        best_so_far=(accuracy,), flattened=True,
    )  # fmt: skip


def record(size: int, trial: int, steps: int, val: float, **changes: Any) -> AttackRecord:
    return AttackRecord(
        family="fine_tune", num_examples=size, num_steps=steps, trial=trial, status="ok", examples_seen=0, seconds=0.1,
        val_accuracy=val, **changes,
    )  # fmt: skip


def report(paper: dict[int, float], probe: dict[int, float], records: list[AttackRecord] | None = None) -> AttackReport:
    cells = [cell("fine_tune", n, value) for n, value in paper.items()]
    cells += [cell("knn", n, value) for n, value in probe.items()]
    worst = tuple(max((c for c in cells if c.num_examples == n), key=lambda c: c.accuracy) for n in SIZES)
    return AttackReport(
        settings={}, data_digest="d", num_classes=2, base_rate=0.5, num_validation=10, num_test=10, seconds=1.0,
        cells=worst, family_cells=tuple(cells), not_tried=(), records=records or [],
    )  # fmt: skip


def released(desired: float, paper: float, probe: float = 0.5, records: list[AttackRecord] | None = None) -> Released:
    """One training seed whose accuracy is `paper` under fine-tuning at both n, and `probe` under knn."""
    return Released(desired=desired, report=report(dict.fromkeys(SIZES, paper), dict.fromkeys(SIZES, probe), records))


def model(desired: float, *papers: float, probe: float = 0.5) -> dict[int, Released]:
    return {seed: released(desired, value, probe) for seed, value in enumerate(papers)}


MEASURED = Measured(
    models={
        "random": model(0.7, 0.50, 0.51, 0.49),
        "tuned": model(0.98, 0.80, 0.82, 0.78),
        "mlac-k16": model(0.97, 0.51, 0.52, 0.50, probe=0.7),
        "wide": model(0.90, 0.45, 0.70, 0.60),
    },
    missing={"ac": "it diverged"},
)


def found(quantity: Any, side: Any, bound: float, attacker: str = "fine_tune", measured: Measured = MEASURED) -> Any:
    (finding,) = judge([Claim(name="c", says="c", quantity=quantity, side=side, bound=bound)], measured, attacker)
    return finding


@pytest.mark.parametrize(
    ("quantity", "side", "bound", "attacker", "verdict"),
    [
        (HeadStart("tuned"), "above", 0.05, "fine_tune", "reproduced"),
        (HeadStart("mlac-k16"), "above", 0.05, "fine_tune", "not reproduced"),
        (HeadStart("mlac-k16"), "below", 0.05, "fine_tune", "reproduced"),
        (HeadStart("mlac-k16"), "below", 0.05, WORST, "not reproduced"),
        (HeadStart("wide"), "below", 0.05, "fine_tune", "inconclusive"),
        (HarmfulDifference("tuned", "mlac-k16"), "above", 0.0, "fine_tune", "reproduced"),
        (HarmfulDifference("mlac-k16", "tuned"), "above", 0.0, "fine_tune", "not reproduced"),
        (DesiredDrop("mlac-k16"), "below", 0.02, "fine_tune", "reproduced"),
        (DesiredDrop("wide"), "below", 0.02, "fine_tune", "not reproduced"),
        (HeadStart("ac"), "above", 0.05, "fine_tune", "inconclusive"),
    ],
)
def test_an_interval_decides(quantity: Any, side: Any, bound: float, attacker: str, verdict: str) -> None:
    assert found(quantity, side, bound, attacker).verdict == verdict


def test_shares_kept_are_judged_like_accuracies() -> None:
    shares = [{"harmful": 0.05, "benign": 0.95}, {"harmful": 0.06, "benign": 0.94}, {"harmful": 0.07, "benign": 0.96}]
    kept = {seed: replace(released(0.9, 0.5, 0.5), kept=share) for seed, share in enumerate(shares)}
    measured = replace(MEASURED, models={"held": kept})
    assert found(Kept("held", "harmful"), "below", 0.1, measured=measured).verdict == "reproduced"
    assert found(Kept("held", "benign"), "above", 0.9, measured=measured).verdict == "reproduced"
    assert found(Kept("held", "benign"), "above", 0.95, measured=measured).verdict == "inconclusive"
    assert found(Blocking("held"), "above", 0.0, measured=measured).estimate.mean == pytest.approx(0.89)
    finding = found(Kept("held", "desired"), "above", 0.9, measured=measured)
    assert (finding.verdict, finding.reason) == ("inconclusive", "no desired head start was measured for held")


def test_values_are_paired_by_seed_and_the_interval_is_students() -> None:
    """Differences 0.30, 0.31, 0.29: mean 0.30, standard deviation 0.01, t(0.975, 2) = 4.302653."""
    estimate = found(HeadStart("tuned"), "above", 0.05).estimate
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert estimate == pytest.approx((0.30, 0.30 - half, 0.30 + half))
    shuffled = dict(reversed(MEASURED.models["random"].items()))
    assert (
        found(
            HeadStart("tuned"),
            "above",
            0.05,
            measured=replace(MEASURED, models={**MEASURED.models, "random": shuffled}),
        ).estimate
        == estimate
    )


def test_one_n_can_be_asked_for() -> None:
    few = {
        seed: Released(desired=1, report=report({20: 0.6, 200: 0.9}, dict.fromkeys(SIZES, 0.5))) for seed in range(3)
    }
    measured = replace(MEASURED, models={**MEASURED.models, "few": few})
    assert found(HeadStart("few", 20), "above", 0, measured=measured).estimate.mean == pytest.approx(0.1)
    assert found(HeadStart("few"), "above", 0, measured=measured).estimate.mean == pytest.approx(0.25)


def test_long_attacks_are_judged_by_points_of_enough_steps_alone() -> None:
    """The best short point (0.9) does not count; of the long ones the better mean over seeds does."""
    records = [
        record(size, trial, steps, val, seed_index=seed)
        for size in SIZES
        for trial, steps, vals in ((0, 100, (0.9, 0.9)), (1, 600, (0.6, 0.8)), (2, 900, (0.75, 0.55)))
        for seed, val in enumerate(vals)
    ]
    records += [record(size, 9, 900, 0.99, phase="rerun") for size in SIZES]
    flat = [record(size, trial, steps, 0.5) for size in SIZES for trial, steps in ((0, 100), (1, 600), (2, 900))]
    measured = Measured(
        models={"random": {0: released(0, 0.5, records=flat)}, "m": {0: released(1, 0.5, records=records)}}
    )
    assert measured.long_head_start("m", "fine_tune", 500) == pytest.approx({0: 0.2})
    with pytest.raises(UsageError, match="no search point of 901 steps"):
        measured.long_head_start("m", "fine_tune", 901)
    assert LongHeadStart("m", 500).values(measured, WORST) == pytest.approx({0: 0.2})


def test_what_is_missing_is_inconclusive_and_never_blocked() -> None:
    finding = found(HeadStart("ac"), "below", 0.05)
    assert (finding.verdict, finding.reason) == ("inconclusive", "ac was not measured: it diverged")
    broken = {**MEASURED.models, "gap": model(0.9, 0.5, math.nan, 0.5)}
    finding = found(HeadStart("gap"), "below", 0.05, measured=replace(MEASURED, models=broken))
    assert (finding.verdict, finding.num_seeds) == ("inconclusive", 0)
    assert "failed" in finding.reason
    single = {name: {0: seeds[0]} for name, seeds in MEASURED.models.items()}
    finding = found(HeadStart("mlac-k16"), "below", 0.05, measured=replace(MEASURED, models=single))
    assert (finding.verdict, finding.reason) == ("inconclusive", "1 training seed(s) give no interval")
    assert Estimate.of([]).mean != Estimate.of([]).mean


def test_a_family_that_one_model_does_not_allow_leaves_a_gap_there_alone() -> None:
    without = Released(desired=0.9, report=replace(report(dict.fromkeys(SIZES, 0.6), {}), not_tried=("knn (needs)",)))
    measured = replace(MEASURED, models={**MEASURED.models, "other": dict.fromkeys(range(3), without)})
    assert leaderboard(measured)[-1] == ["other", "**0.600**", "-", "0.600"]
    assert any(row["model"] == "other" and row["harmful"] is None for row in table_rows(measured))
    with pytest.raises(UsageError, match="attacker lora was not tried"):
        measured.harmful("other", "lora")


def test_the_command_line_knows_every_suite() -> None:
    assert {suite.value for suite in options.Suite} == SUITES.keys()


def test_models_of_another_sweep_stand_beside_these_only_under_the_same_conditions() -> None:
    def at(conditions: tuple[str, ...], **models: dict[int, Released]) -> Measured:
        return Measured(
            models={n: {s: replace(one, conditions=conditions) for s, one in m.items()} for n, m in models.items()}
        )

    ours, theirs = (
        at(("a",), tuned=model(0.98, 0.8), tar=model(0.97, 0.5)),
        at(("a",), tuned=model(0.1, 0.1), ac=model(0.9, 0.8, 0.6)),
    )
    both = ours.with_models_of(theirs)
    assert list(both.models) == ["tuned", "tar", "ac"]
    assert both.desired("tuned") == {0: 0.98}
    assert both.harmful("ac", "fine_tune") == {0: pytest.approx(0.8)}, "the seeds of this suite alone"
    with pytest.raises(UsageError, match="other data"):
        ours.with_models_of(at(("b",), ac=model(0.9, 0.8)))
    with pytest.raises(UsageError, match="lack training seed 1;"):
        at(("a",), tar=model(0.97, 0.5, 0.6)).with_models_of(at(("a",), ac=model(0.9, 0.8)))


def test_the_files_say_what_was_measured(tmp_path: Path) -> None:
    suite = SUITES["paper-bios"]
    settings = suite_settings(suite, small=True)
    findings = write_reproduction(suite, settings, MEASURED, tmp_path)
    assert len(findings) == 2 * len(suite.claims)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "claims.json", "methods.png", "methods_worst.png", "report.md", "table.parquet",
    ]  # fmt: skip
    told = {(f["claim"], f["attacker"]): f for f in json.loads((tmp_path / "claims.json").read_text())}
    assert told["mlac_is_not", "fine_tune"]["verdict"] == "reproduced"
    assert told["mlac_is_not", "worst"]["verdict"] == "not reproduced"
    assert told["ac_is_recovered", "fine_tune"]["value"] is None
    text = (tmp_path / "report.md").read_text()
    assert "not tried: " in text
    assert "partial, lora" in text
    for words in (
        "| tuned | 0.980 | 0.800 | 0.800 | 0.800 | +0.300 [+0.275, +0.325] |",
        "not reproduced",
        "Missing: ac",
        "methods_worst.png",
    ):
        assert words in text, words
    rows = pq.read_table(tmp_path / "table.parquet").to_pylist()
    assert rows == table_rows(MEASURED)
    (row,) = (r for r in rows if (r["model"], r["attacker"], r["num_examples"]) == ("mlac-k16", "knn", 0))
    assert (row["harmful"], row["head_start"], row["num_seeds"]) == pytest.approx((0.7, 0.2, 3))
    assert leaderboard(MEASURED)[3] == ["mlac-k16", "0.510", "**0.700**", "0.700"]


def shipped_sweeps() -> list[SweepSettings]:
    paths = [path for path in sorted(SWEEPS.glob("*.yaml")) if "trial" in yaml.safe_load(path.read_text())]
    return [load_settings(SweepSettings, path) for path in paths]


def test_figures_bound_intervals_and_give_every_model_a_look_of_its_own() -> None:
    wide = replace(MEASURED, models={**MEASURED.models, "wide": model(0.9, 0.4, 1.0, 1.0)})
    curve = model_curve(wide, "wide", "fine_tune")
    assert (curve.low[0], curve.high[0]) == (0.0, 1.0)
    styles = model_styles([f"v{index}" for index in range(10)])
    assert len(set(styles.values())) == len(styles) - 1, "only mlac, which no suite has, shares a look"


@pytest.mark.parametrize("name", sorted(SUITES))
@pytest.mark.parametrize("small", [True, False])
def test_a_suite_has_the_models_that_its_claims_and_figures_need(name: str, small: bool) -> None:
    """Trained for as many steps as the tuned model beside them, and attacked by draws that nothing else has used."""
    suite = SUITES[name]
    settings = suite_settings(suite, small=small)
    check_sweep(settings)
    there = set(ordered_references(settings))
    for other in suite.beside:
        there |= set(ordered_references(suite_settings(SUITES[other], small=small)))
    for claim in suite.claims:
        assert set(claim.quantity.models) <= there, claim.name
        assert claim.bound in (0.0, 0.02, 0.05, -0.05, 0.1, 0.25, 0.9)
    for figure in suite.figures:
        drawn = set(figure.models) - ({"gradient-penalty"} if small else set())
        assert drawn - {"pretrained"} <= there, figure.name
    steps = {reference_settings(settings, model).train.num_outer_steps for model in ordered_references(settings)}
    assert len(steps) == 1
    assert settings.search.num_trials == 0
    assert settings.search.num_seeds >= 3
    selecting = [one for one in shipped_sweeps() if one.search.num_trials]
    assert selecting
    assert settings.trial.attack.seed not in {one.trial.attack.seed for one in selecting}
    for other in suite.beside:
        assert suite_settings(SUITES[other], small=small).trial.attack == settings.trial.attack


def test_a_suite_without_its_file_or_its_floor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = replace(SUITES["paper-bios"], file="nothing")
    with pytest.raises(UsageError, match=r"sweeps/nothing_small.yaml is not found"):
        suite_settings(suite, small=True)
    with pytest.raises(UsageError, match="must hold 'random'"):
        suite_settings(SUITES["paper-bios"], small=True, overrides=["references=[tuned]"])
    with pytest.raises(UsageError, match="a suite selects nothing"):
        suite_settings(SUITES["paper-bios"], small=True, overrides=["search.num_trials=2"])
    (tmp_path / "sweeps").mkdir()
    document = yaml.safe_load((SWEEPS / "paper_bios_small.yaml").read_text())
    (tmp_path / "sweeps" / "paper_bios_small.yaml").write_text(yaml.safe_dump({**document, "name": "mine"}))
    monkeypatch.chdir(tmp_path)
    assert suite_settings(SUITES["paper-bios"], small=True).name == "mine"


TINY = (
    "output_dir=runs", "search.num_seeds=2", "references=[random, tuned]", "tracking.enabled=false",
    "variants={mlac-k4: {train.adversary.num_steps: 1}}", "trial.train.num_outer_steps=2",
    "trial.data.synthetic.version=1", "trial.data.synthetic.num_examples=300", "trial.attack.families=[fine_tune, knn]",
    "trial.attack.num_examples=[8, 12]", "trial.attack.num_search_trials=2",
    "trial.attack.benign_families=[linear_probe]", "trial.attack.measure_information=false",
    "trial.attack.num_rerun_seeds=2", "trial.attack.num_steps_min=2", "trial.scratch.enabled=false",
    "trial.attack.num_steps_max=4", "resources.max_concurrent_trials=1",
)  # fmt: skip


@pytest.mark.usefixtures("in_process")
def test_the_command_runs_resumes_and_reports(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = (*TINY, f"trial.encoder.name={encoder_folder}")
    command = ["reproduce", "paper-bios", "--small", *(word for text in tiny for word in ("--set", text))]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert not stopped.value.code
    said = capsys.readouterr().out
    assert "claims under the published attacker" in said
    assert "inconclusive" in said
    folder = tmp_path / "runs" / "paper-bios-small"
    measured = read_measured(folder)
    assert [(name, sorted(seeds)) for name, seeds in measured.models.items()] == [
        (name, [0, 1]) for name in ("tuned", "random", "mlac-k4")
    ]
    assert measured.attackers == ("fine_tune", "knn", "worst")
    assert len(measured.conditions) == 1
    report = (folder / "reproduction" / "report.md").read_text()
    (folder / "reproduction" / "report.md").unlink()
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--resume"])
    assert not stopped.value.code
    assert (folder / "reproduction" / "report.md").read_text() == report
    ran = folder / "sweep.yaml"
    ran.write_text(ran.read_text().replace("num_outer_steps: 2\n", "num_outer_steps: 3\n"))
    with pytest.raises(UsageError, match="outer steps"):
        measured.with_models_of(read_measured(folder))


def test_an_unknown_suite_is_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", "paper-bioz"])
    assert stopped.value.code == 2
    assert "paper-bios" in capsys.readouterr().err
