"""`sdm-ray init`: the file that it writes runs, and what cannot work is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from sdm_ray.cli import main
from sdm_ray.config import SweepSettings, load_settings
from sdm_ray.sweep.search.check import check_sweep
from sdm_ray.trial.workspace import check_inputs
from tests.fakes import files as helpers


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDM_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path


def init(
    capsys: pytest.CaptureFixture[str], data: Path | str, encoder: Path | str, *more: str, text: str = "text"
) -> tuple[int, str, str]:
    arguments = ["init", str(data), "--text", text, "--desired", "profession", "--harmful", "gender"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--encoder", str(encoder), *more])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_what_it_writes_runs(suffix: str, capsys: pytest.CaptureFixture[str], bert_folder: Path, here: Path) -> None:
    data = helpers.write_rows(here / f"my rows{suffix}", helpers.make_rows(600))
    code, out, err = init(capsys, data, bert_folder)
    assert code == 0, err
    assert "600 texts; desired: 3 classes (nurse, pilot, tailor); harmful: 2 classes (f, m)" in out
    assert "an estimate from a few training steps" in out
    settings = load_settings(SweepSettings, here / "my-rows.yaml")
    assert settings.name == "my-rows"
    assert settings.trial.data.max_length == 16, "as wide as the texts"
    assert settings.trial.encoder.pooling == "native", "what it was is written down"
    assert settings.trial.attack.num_examples == (20, 50)
    check_sweep(settings)
    check_inputs(settings.trial)


def test_no_name_breaks_the_file(capsys: pytest.CaptureFixture[str], bert_folder: Path, here: Path) -> None:
    rows = helpers.make_rows(240)
    names = {"f": 'on\nname: evil # "', "m": "yes: {"}
    rows["gender"] = [names[gender] for gender in rows["gender"]]
    data = helpers.write_rows(here / "on: #1" / "no.csv", rows)
    assert init(capsys, data, bert_folder)[0] == 0
    settings = load_settings(SweepSettings, here / "no.yaml")
    assert settings.name == "no"
    assert settings.trial.data.source == str(data)


def test_few_texts_get_other_splits_and_an_n_that_fits(
    capsys: pytest.CaptureFixture[str], bert_folder: Path, here: Path
) -> None:
    data = helpers.write_rows(here / "rows.csv", helpers.make_rows(90))
    assert init(capsys, data, bert_folder)[0] == 0
    settings = load_settings(SweepSettings, here / "rows.yaml").trial
    assert settings.data.splits.attacker_train == 0.3
    assert max(settings.attack.num_examples) <= 27
    check_inputs(settings)


def test_a_file_is_replaced_only_by_force(
    capsys: pytest.CaptureFixture[str], bert_folder: Path, data_file: Path, here: Path
) -> None:
    (here / "mine.yaml").write_text("precious")
    code, _, err = init(capsys, data_file, bert_folder, "--out", "mine.yaml")
    assert code == 2
    assert "mine.yaml exists; add --force to replace it" in err
    assert (here / "mine.yaml").read_text() == "precious"
    assert init(capsys, data_file, bert_folder, "--out", "mine.yaml", "--force")[0] == 0
    assert load_settings(SweepSettings, here / "mine.yaml").trial.data.source == str(data_file)


def test_what_cannot_work_is_one_sentence(
    capsys: pytest.CaptureFixture[str], bert_folder: Path, data_file: Path, here: Path
) -> None:
    rows = helpers.make_rows(60)
    one_class = helpers.write_rows(here / "one.csv", rows | {"gender": ["f"] * 60})
    no_label = helpers.write_rows(here / "no.csv", rows | {"gender": rows["text"]})
    few = helpers.write_rows(here / "few.csv", helpers.make_rows(18))
    decoder = here / "gpt2"
    AutoConfig.for_model("gpt2", vocab_size=40, n_embd=16, n_layer=1, n_head=2).save_pretrained(decoder)
    refused = [
        (init(capsys, data_file, bert_folder, text="review"), "no column 'review', only 'text', 'profession'"),
        (init(capsys, one_class, bert_folder), "has one class, 'f'"),
        (init(capsys, no_label, bert_folder), "has 60 different values in 60 texts, which is no label"),
        (init(capsys, few, bert_folder), "18 texts are too few: "),
        (init(capsys, "nowhere.csv", bert_folder), "nowhere.csv does not exist"),
        (init(capsys, data_file, decoder), "'gpt2' is a decoder"),
        (init(capsys, "synthetic", bert_folder), "has a sweep file of its own"),
    ]
    for (code, _, err), words in refused:
        assert code == 2
        assert words in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert not list(here.glob("*.yaml"))
