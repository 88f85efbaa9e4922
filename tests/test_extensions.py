"""Modules of a user's own, as `sdm_ray/README.md` shows them: its code blocks are run here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from sdm_ray.attack.families import FAMILIES, own_families, register
from sdm_ray.attack.families.base import OWN_EDITS
from sdm_ray.attack.families.edits import Editor
from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.cli import main
from sdm_ray.config import (
    DataSettings,
    SweepSettings,
    TrialSettings,
    content_hash,
    json_schema,
    load_own_modules,
    load_settings,
    parse_settings,
    to_yaml,
)
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.extensions import source_digest
from sdm_ray.core.metric_names import OWN_METRICS
from sdm_ray.data.own_sources import OWN_SOURCES, data_source
from sdm_ray.data.sources import load_examples
from sdm_ray.frontier.tables import read_tables
from sdm_ray.meta.objectives import TERMS
from sdm_ray.sweep import run_sweep
from sdm_ray.sweep.cluster.worker import Job, TrialWorker
from sdm_ray.sweep.search.check import check_sweep
from sdm_ray.trial.own_metrics import own_metrics, trial_metric
from sdm_ray.trial.run import attack_digest
from tests import ROOT
from tests.fakes.attack_world import FakeData, TinyTrunk

README = (ROOT / "sdm_ray" / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## Extending without editing")[1].split("\n## ")[0]
SMALL = (
    "trial.scratch.enabled=false", "trial.train.num_outer_steps=4", "trial.train.adversary.num_steps=1",
    "trial.data.max_length=16", "trial.attack.num_examples=[4]", "trial.attack.num_search_trials=2",
    "trial.attack.num_rerun_seeds=2", "trial.attack.num_steps_min=2", "trial.attack.num_steps_max=4",
    "trial.attack.batch_sizes=[4]", "trial.attack.measure_information=false", "references=[tuned]",
    "search.num_trials=2", "search.require_audit=false", "resources.max_concurrent_trials=2",
    "tracking.enabled=false",
)  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty working directory that is not on Python's path; registries and path are put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(Path.cwd()))])
    monkeypatch.setattr("sdm_ray.core.extensions._imported", {})
    registries: list[dict] = [TERMS, FAMILIES, OWN_EDITS, OWN_METRICS, OWN_SOURCES]
    before, modules = [dict(registry) for registry in registries], set(sys.modules)
    yield tmp_path
    for registry, kept in zip(registries, before, strict=True):
        registry.clear()
        registry.update(kept)
    for name in set(sys.modules) - modules:
        if name.startswith("mything"):
            del sys.modules[name]


@pytest.fixture
def example(clean: Path, encoder_folder: Path) -> list[str]:
    """The README's module and sweep file, in the working directory; gives overrides that make it small."""
    (clean / "mything.py").write_text("\n".join(blocks("python")))
    (sweep_file,) = blocks("yaml")
    (clean / "mine.yaml").write_text(sweep_file)
    return [*SMALL, f"trial.encoder.name={encoder_folder}", f"trial.runtime.cache_dir={clean / 'cache'}"]


def check_points(folder: Path, names: set[str]) -> None:
    """The sweep's points have what the module brings along."""
    points = {point.trial_id: point for point in read_tables(folder)}
    assert set(points) == names
    for name, point in points.items():
        assert point.metrics["mine/largest_weight"] > 0
        families = json.loads((folder / "trials" / name / "attack.json").read_text())["settings"]["families"]
        assert families == ["fine_tune", "stretch"]
        assert point.further == {"mine/largest_weight": point.metrics["mine/largest_weight"]}
    assert {"train.blocking.custom.peak"} == set(points["t0000"].params)
    config = load_settings(TrialSettings, folder / "trials" / "t0000" / "config.yaml")
    assert config.data.source == "kitchens"
    assert config.modules == {"mything": config.modules["mything"]}
    assert re.fullmatch("[0-9a-f]{12}", config.modules["mything"])


def test_the_readmes_examples_are_ten_lines_each() -> None:
    bodies = [[line for line in block.splitlines() if line.strip()] for block in blocks("python")]
    assert len(bodies) == 4
    assert all(len(body) <= 13 for body in bodies)


@pytest.mark.usefixtures("in_process")
def test_the_readmes_sweep_runs(example: list[str], clean: Path) -> None:
    settings = load_settings(SweepSettings, clean / "mine.yaml", [*example, "references=[]", "search.num_trials=1"])
    outcome = run_sweep(settings)
    assert not outcome.failures, outcome.failures
    check_points(outcome.folder, {"t0000"})
    stored = load_settings(SweepSettings, outcome.folder / "sweep.yaml")
    assert [result.trial_id for result in run_sweep(stored, resume=True).results] == ["t0000"]
    write(clean, (clean / "mything.py").read_text() + "\n# changed")
    with pytest.raises(UsageError, match=r"has changed since it began: trial\.modules\.mything was '\w+', is '\w+'"):
        run_sweep(settings, resume=True)


def test_the_readmes_sweep_passes_its_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema(SweepSettings, families=["fine_tune", "stretch"], metrics=["mine/largest_weight"])
    jsonschema.validate(yaml.safe_load(blocks("yaml")[0]), schema)


@pytest.mark.slow
def test_the_readmes_sweep_runs_by_its_command_with_two_workers(example: list[str], clean: Path) -> None:
    """The console script's path lacks the working directory, as here."""
    code = "import sys; sys.path[:] = [path for path in sys.path if path]; from sdm_ray.cli import main; main()"
    overrides = [word for text in example for word in ("--set", text)]
    command = [sys.executable, "-P", "-c", code, "sweep", "mine.yaml", *overrides]
    done = subprocess.run(command, cwd=clean, capture_output=True, text=True, timeout=280, check=False)
    assert "3 trials, 0 failed" in done.stdout, done.stdout + done.stderr  # so short an attack passes no audit
    check_points(clean / "runs" / "mine", {"tuned", "t0000", "t0001"})


def write(folder: Path, body: str, name: str = "mything") -> None:
    (folder / f"{name}.py").write_text(body)


METRIC = "from sdm_ray import trial_metric\n@trial_metric('mine/{name}')\ndef {name}(measured):\n    return {value}\n"


def test_modules_stand_anywhere_and_are_loaded_before_checks(clean: Path) -> None:
    """At the top of a sweep file, in its trial, or on the command line; each is loaded before metrics are checked."""
    for index in range(3):
        write(clean, METRIC.format(name=f"m{index}", value=index), f"mything{index}")
    document = {
        "modules": "mything0",
        "trial": {"modules": ["mything1"]},
        "space": {"train.learning_rate": {"type": "float", "low": 0.1, "high": 1}},
        "objectives": [{"metric": f"mine/m{index}", "direction": "minimize"} for index in range(3)],
    }
    settings = parse_settings(SweepSettings, document)
    assert settings.trial.modules == {"mything0": "", "mything1": ""}
    with pytest.raises(UsageError, match="unknown metric 'mine/m0'"):
        check_sweep(settings)
    loaded = load_own_modules(settings, ["mything2"])
    check_sweep(loaded)
    assert list(loaded.trial.modules) == ["mything0", "mything1", "mything2"]
    assert load_own_modules(loaded) is loaded
    (clean / "stored.yaml").write_text(to_yaml(loaded))
    assert load_settings(SweepSettings, clean / "stored.yaml") == loaded


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mything.py", r"modules: 'mything\.py' is no name of a module; write 'mything'"),
        ("[a/b.py]", r"'a/b\.py' is no name of a module; write 'a\.b'"),
        ("3", "modules must be a list of names of modules, got 3"),
        ("[1]", r"modules must be a list of names of modules, got \[1\]"),
    ],
)
@pytest.mark.parametrize("kind", [TrialSettings, SweepSettings])
def test_what_names_no_module_is_refused(kind: type[TrialSettings], value: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_settings(kind, {}, [f"modules={value}"])


@pytest.mark.parametrize(
    ("body", "message"), [(None, "No module named"), ("1 / 0", "ZeroDivisionError"), ("(", "Synt")]
)
def test_a_module_that_cannot_be_imported_is_one_sentence(
    clean: Path, capsys: pytest.CaptureFixture[str], body: str | None, message: str
) -> None:
    if body is not None:
        write(clean, body)
    (clean / "trial.yaml").write_text("modules: [mything]")
    for command in ("train", "attack"):
        config = ["--config", "trial.yaml", "model"] if command == "attack" else ["trial.yaml"]
        with pytest.raises(SystemExit) as stop:
            main([command, *config])
        assert stop.value.code == 2
        said = capsys.readouterr().err.splitlines()[-1]  # what it is doing stands above
        assert said.startswith("error: modules: 'mything' cannot be imported (")
        assert message in said
        assert str(clean) in said


def test_the_source_of_modules_is_part_of_what_a_config_computes(clean: Path) -> None:
    """Without modules the hash is what it was; a stored config takes no other source, and a new name takes any."""
    plain = TrialSettings()
    assert "modules" not in plain.identity()
    write(clean, "x = 1")
    first = load_own_modules(plain, ["mything"])
    write(clean, "x = 2")
    second = load_own_modules(plain, ["mything"])
    assert sys.modules["mything"].x == 2, "it was read again"
    assert len({content_hash(settings) for settings in (plain, first, second)}) == 3
    with pytest.raises(UsageError, match=r"not the module that this was made with \(its source was \w+, is \w+\)"):
        load_own_modules(first)
    assert load_own_modules(first, ["mything"]) == second


def test_all_files_of_a_package_count(clean: Path) -> None:
    (clean / "mything_package").mkdir()
    write(clean / "mything_package", "", "__init__")
    digests = []
    for text in ("x = 1", "x = 2"):
        write(clean / "mything_package", text, "inner")
        digests.append(load_own_modules(TrialSettings(), ["mything_package"]).modules["mything_package"])
    assert digests[0] != digests[1]


def test_a_worker_loads_modules_and_refuses_another_source(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that has not: here, with the registry emptied, and from another folder."""
    write(clean, METRIC.format(name="spread", value=1.0))
    settings = load_own_modules(TrialSettings(scratch={"enabled": False}), ["mything"])  # type: ignore[arg-type]
    OWN_METRICS.clear()
    del sys.modules["mything"]
    (clean / "elsewhere").mkdir()
    monkeypatch.chdir(clean / "elsewhere")
    job = Job(
        trial_id="t0000",
        output_dir=str(clean / "elsewhere"),
        settings=settings.model_dump(mode="json"),
        trial_function="tests.fakes.sweep:smooth",
        working_dir=str(clean),
    )
    worker = TrialWorker(job)
    worker.advance()
    worker.close()
    assert "mine/spread" in OWN_METRICS
    write(clean, METRIC.format(name="spread", value=2.0))
    (clean / "other").mkdir()
    failed = TrialWorker(Job(**{**vars(job), "output_dir": str(clean / "other")})).advance().result
    assert failed is not None
    assert "'mything' is not the module that this was made with" in str(failed.error)


def test_the_schema_has_names_of_modules(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(clean, METRIC.format(name="spread", value=1.0))
    found = []
    for more in ([], ["--module", "mything"]):
        with pytest.raises(SystemExit):
            main(["schema", "sweep", *more])
        found.append("mine/spread" in capsys.readouterr().out)
    assert found == [False, True]


def test_weights_of_own_terms_are_searched_only_where_there_is_such_a_term(clean: Path) -> None:
    space = {"train.blocking.custom.pekk": {"type": "float", "low": 0.1, "high": 1}}
    with pytest.raises(UsageError, match="no term is called 'pekk'"):
        check_sweep(parse_settings(SweepSettings, {"space": space}))


@pytest.mark.usefixtures("clean")
def test_names_are_taken_once() -> None:
    def other(measured: object) -> float:
        return 0.0

    trial_metric("mine/a")(other)
    trial_metric("mine/a")(other)
    with pytest.raises(ValueError, match="'mine/a' is already registered"):
        trial_metric("mine/a")(lambda measured: 1.0)
    for name in ("harmful/mine", "nameless", "a/b c", "train/x"):
        with pytest.raises(ValueError, match="cannot name a metric"):
            trial_metric(name)
    for name in ("synthetic", "owner/name", "./x", "a.parquet"):
        with pytest.raises(ValueError, match="cannot name a source of data"):
            data_source(name)
    data_source("mine")(lambda settings: {"text": ["a"]})
    with pytest.raises(ValueError, match="'mine' is already registered"):
        data_source("mine")(test_names_are_taken_once)  # type: ignore[arg-type]
    family = FAMILIES["full"]
    with pytest.raises(ValueError, match="'full' is registered already"):
        register(family)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"text": ["a"], "profession": ["x", "y"]}, UsageError, r"data\.source 'mine' \(.*\) gives no table: "),
        (3, UsageError, r"data\.source 'mine' .* gives no table: TypeError"),
        ({"text": ["a"], "profession": ["x"]}, UsageError, r"data\.harmful_column: data\.source 'mine' has no column"),
        (RunError("the server is away"), RunError, "^the server is away$"),
    ],
)
def test_a_source_that_gives_no_table_says_so(value: object, error: type[Exception], message: str) -> None:
    @data_source("mine")
    def mine(settings: DataSettings) -> object:
        if isinstance(value, Exception):
            raise value
        return value

    with pytest.raises(error, match=message):
        load_examples(DataSettings(source="mine"))
    with pytest.raises(UsageError, match=r"nor a source that a module in `modules` registers \(mine\)"):
        load_examples(DataSettings(source="thine"))


@pytest.mark.usefixtures("clean")
def test_a_metric_that_fails_is_named_and_one_that_is_not_finite_is_left_out() -> None:
    trial_metric("mine/nan")(lambda measured: float("nan"))
    assert own_metrics(None) == {}  # type: ignore[arg-type]

    @trial_metric("mine/broken")
    def broken(measured: object) -> float:
        raise KeyError("x")

    with pytest.raises(RunError, match=r"metric 'mine/broken' \(.*broken\) failed: KeyError: 'x'"):
        own_metrics(None)  # type: ignore[arg-type]


def test_attacks_by_own_families_are_told_apart_by_their_source(clean: Path) -> None:
    """Cached floors and comparisons of attacks would else mix what two versions of a family found."""
    body = blocks("python")[1]
    known, digests = parse_settings(TrialSettings, {}, ["attack.families=[full]"]).attack, []
    before = attack_digest(known)
    for text in (body, body.replace("0.9", "0.8")):
        write(clean, text)
        settings = parse_settings(TrialSettings, {"modules": ["mything"]}, ["attack.families=[full, stretch]"])
        load_own_modules(settings)
        digests.append(attack_digest(settings.attack))
    assert digests[0] != digests[1]
    assert own_families(("full", "stretch")).keys() == {"stretch"}
    assert attack_digest(known) == before


def test_what_a_notebook_registers_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cells_of_a_notebook", ModuleType("cells_of_a_notebook"))
    assert re.fullmatch("[0-9a-f]{12}", source_digest("cells_of_a_notebook"))


def test_an_own_edit_changes_the_weights_that_are_attacked(clean: Path) -> None:
    write(clean, blocks("python")[1])
    load_own_modules(TrialSettings(), ["mything"])
    trunk, data = TinyTrunk(), FakeData()
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    editor = Editor(trunk, params, data, Knowledge(), 0, lambda params, steps: params)  # type: ignore[arg-type]
    point = {"learning_rate": 1e-3, "num_steps": 2, "batch_size": 4, "optimizer": "adam", "schedule": "constant"}
    attacker = FAMILIES["stretch"].attacker({**point, "amount": 0.5}, 20)
    changed = editor.edited(attacker)
    assert all(torch.equal(changed[name], 0.5 * value) for name, value in params.items() if value.dim() > 1)
    assert all(torch.equal(changed[name], value) for name, value in params.items() if value.dim() <= 1)


@pytest.mark.parametrize("setting", ["modules: [mything]", "train: {term_modules: [mything]}"])
@pytest.mark.parametrize("command", ["train", "attack", "sweep"])
def test_a_file_alone_loads_no_module_from_elsewhere(
    clean: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str, command: str
) -> None:
    """A `best.yaml` may be somebody else's, and a module runs when it is loaded; a person may name it."""
    (clean / "elsewhere").mkdir()
    write(clean / "elsewhere", f"open({str(clean / 'ran')!r}, 'w')\nraise RuntimeError('it runs')")
    monkeypatch.syspath_prepend(str(clean / "elsewhere"))
    (clean / "here").mkdir()
    monkeypatch.chdir(clean / "here")
    Path("trial.yaml").write_text(f"trial: {{{setting}}}" if command == "sweep" else setting)
    config = ["--config", "trial.yaml", "model"] if command == "attack" else ["trial.yaml"]

    def said(*more: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main([command, *config, *more])
        assert stop.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    wanted = f"the file asks for the module 'mything', which would run {clean / 'elsewhere' / 'mything.py'}, outside"
    assert wanted in said()
    assert not (clean / "ran").exists()
    assert "it runs" in said("--module", "mything")
    assert (clean / "ran").exists()


def test_another_source_does_not_run(clean: Path) -> None:
    write(clean, "x = 1")
    first = load_own_modules(TrialSettings(), ["mything"])
    del sys.modules["mything"]
    write(clean, f"open({str(clean / 'ran')!r}, 'w')")
    with pytest.raises(UsageError, match="is not the module that this was made with"):
        load_own_modules(first)
    assert not (clean / "ran").exists()
