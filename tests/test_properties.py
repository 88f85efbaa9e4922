"""Properties of what is read and written: settings load and dump to themselves or are refused in a sentence, files
survive a round trip, and a damaged byte gives a sentence or values, never another error."""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdm_ray.config import SweepSettings, TrialSettings, content_hash, load_settings, to_yaml
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.result import TrialResult, read_result, write_result
from sdm_ray.frontier.points import Point
from sdm_ray.frontier.tables import read_tables, write_tables
from sdm_ray.meta.checkpoint import load_checkpoint, save_checkpoint
from sdm_ray.sweep.state.ledger import Entry, Ledger, read_record
from sdm_ray.tracking.outbox import Journal
from tests.fakes.results import trial_result

calm = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
few = settings(calm, max_examples=25, derandomize=True)
many = settings(calm, max_examples=2000)
CPU = torch.device("cpu")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.floats(allow_nan=True, allow_infinity=False)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**40), 10**40), st.floats(), texts,
    st.sampled_from(["auto", "0x10", "1e400", "12.0", "yes", "nan", "-1", "{x}", "${env:NONE}", "~", "a/b", "\0"]),
)  # fmt: skip
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
plain = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), numbers.filter(math.isfinite), texts)
params = st.dictionaries(texts, plain, max_size=3)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for one example."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def paths_of(values: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path in a tree of mappings and lists."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from paths_of(value, (*above, key))


SWEEP = {
    "name": "a", "references": ["tuned"], "variants": {"b": {"train.learning_rate": 0.1}}, "search": {"num_trials": 3},
    "space": {"train.learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}},
}  # fmt: skip
Kind = type[TrialSettings] | type[SweepSettings]
DOCUMENTS: dict[Kind, dict[str, Any]] = {
    TrialSettings: TrialSettings().model_dump(mode="json"),
    SweepSettings: SweepSettings.model_validate(SWEEP).model_dump(mode="json"),
}
CHOICES = {kind: list(paths_of(document)) for kind, document in DOCUMENTS.items()}


@st.composite
def documents(draw: st.DrawFn) -> tuple[Kind, dict[str, Any]]:
    """Settings with some values in place of others, as a person or a program may write them."""
    kind = draw(st.sampled_from(list(DOCUMENTS)))
    document = copy.deepcopy(DOCUMENTS[kind])
    for *above, last in draw(st.lists(st.sampled_from(CHOICES[kind]), min_size=1, max_size=3)):
        inner: Any = document
        with suppress(KeyError, IndexError, TypeError):  # a change before this one has taken its place
            for key in above:
                inner = inner[key]
            inner[last] = draw(trees)
    return kind, document


def check_settings(kind: Kind, text: str) -> None:
    with folder() as here:
        (here / "settings.yaml").write_text(text, encoding="utf-8")
        refusal = ""
        try:
            made = load_settings(kind, here / "settings.yaml")
        except UsageError as error:
            refusal = str(error)
        if refusal:
            assert len(refusal) < 20_000
            return
        (here / "again.yaml").write_text(to_yaml(made), encoding="utf-8")
        again = load_settings(kind, here / "again.yaml")
        assert again == made
        assert content_hash(again) == content_hash(made)


def tree_case(case: tuple[Kind, dict[str, Any]]) -> None:
    check_settings(case[0], yaml.safe_dump(case[1], allow_unicode=True))


def text_case(kind: Kind, text: str) -> None:
    check_settings(kind, text)


def result_of(trial_id: str, metrics: dict[str, float], values: dict[str, Any], where: Path) -> TrialResult:
    return trial_result(trial_id, seed=1, metrics=metrics, output_dir=where, params=values, provenance={"data": "x"})


def write_all(here: Path, names: list[str], metrics: dict[str, float], values: dict[str, Any]) -> dict[str, Any]:
    """Write one of each kind of file; gives what `read_all` must give."""
    ledger = Ledger(here)
    for number, name in enumerate(names):
        ledger.start(Entry(trial_id=name, role="search", method="mlac", number=number, params=values))
        ledger.record_rung(name, 3, 0.5, 0.25)
        ledger.finish(result_of(name, metrics, values, here / "trials" / name), seconds=1.5, elapsed=2.5)
    ledger.name_study("study", {"seed": 1})
    ledger.close()
    journal = Journal(here / "tracking")
    for name in names:
        journal.append({"call": "log", "trial": name, "metrics": {"a": 1.0}})
    journal.close()
    write_result(result_of("t", metrics, values, here))
    points = [
        Point(trial_id=name, method="mlac", desired=0.5, harmful=math.nan, params=values, metrics=metrics)
        for name in names
    ]
    write_tables(points, here)
    save_checkpoint(here / "checkpoint", 4, {"a": 1}, {"weights": torch.tensor(list(metrics.values()))})
    return read_all(here)


READERS = {
    "trials.jsonl": read_record,
    "tracking/journal.jsonl": lambda here: list(Journal(here / "tracking").records()),
    "result.json": read_result,
    "frontier.parquet": read_tables,
    "checkpoint/step-000000004/state.json": lambda here: load_checkpoint(here / "checkpoint", {"a": 1}, CPU),
    "checkpoint/step-000000004/tensors.safetensors": lambda here: load_checkpoint(here / "checkpoint", {"a": 1}, CPU),
}


def read_all(here: Path) -> dict[str, Any]:
    return {name: reader(here) for name, reader in READERS.items()}


def round_trip(names: list[str], metrics: dict[str, float], values: dict[str, Any]) -> None:
    with folder() as here:
        found = write_all(here, names, metrics, values)
        record = found["trials.jsonl"]
        assert list(record.entries) == names
        for name, entry in record.entries.items():
            assert (entry.params, entry.seconds) == (values, 1.5)
            assert same(entry.result.metrics, metrics)
            assert (record.rungs[3][name], record.elapsed) == ((0.5, 0.25), 2.5)
        assert [line["trial"] for line in found["tracking/journal.jsonl"]] == names
        result = found["result.json"]
        assert same(result.metrics, metrics)
        assert result.params == values
        points = found["frontier.parquet"]
        assert [point.trial_id for point in points] == names
        finite = {name: value for name, value in metrics.items() if not math.isnan(value)}
        assert all(point.params == values and point.metrics.items() >= finite.items() for point in points)
        step, state = found["checkpoint/step-000000004/state.json"]
        assert step == 4
        assert torch.equal(state["weights"].nan_to_num(7.0), torch.tensor(list(metrics.values())).nan_to_num(7.0))


def same(first: dict[str, float], second: dict[str, float]) -> bool:
    return first.keys() == second.keys() and all(
        first[name] == second[name] or (math.isnan(first[name]) and math.isnan(second[name])) for name in first
    )


def damage(made: Path, name: str, at: int, change: int, cut: bool) -> None:
    with folder() as here:
        shutil.copytree(made, here, dirs_exist_ok=True)
        path = here / name
        content = bytearray(path.read_bytes())
        at %= len(content)
        content[at] ^= change
        path.write_bytes(content[:at] if cut else content)
        with suppress(UsageError, RunError):
            READERS[name](here)


trial_ids = st.lists(st.from_regex(r"\A[a-z0-9-]{1,8}\Z"), min_size=1, max_size=3, unique=True)
metric_names = st.from_regex(r"\A(mine|harmful)/[a-z_]{1,8}\Z")
measured = st.dictionaries(metric_names, numbers, max_size=4)
DAMAGED = [name for name in READERS if "journal" not in name]
"""Journals have tests of their own (`tests/tracking/test_outbox.py`)."""
hurt = (st.sampled_from(DAMAGED), st.integers(0, 10**6), st.integers(1, 255), st.booleans())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("made")
    write_all(here, ["t0", "t1"], {"harmful/a": 0.5, "harmful/b": math.nan}, {"train.x": 0.1, "n": 3, "s": "é"})
    return here


def test_settings_load_and_dump_to_themselves_or_are_refused() -> None:
    few(given(documents())(tree_case))()


def test_any_text_is_settings_or_refused() -> None:
    few(given(st.sampled_from(list(DOCUMENTS)), st.text(max_size=60))(text_case))()


def test_what_is_written_survives_a_round_trip() -> None:
    few(given(trial_ids, measured, params)(round_trip))()


def test_a_damaged_byte_gives_a_sentence_or_values(made: Path) -> None:
    few(given(st.just(made), *hurt)(damage))()


@pytest.mark.slow
def test_many_of_all(made: Path) -> None:
    many(given(documents())(tree_case))()
    many(given(st.sampled_from(list(DOCUMENTS)), st.text(max_size=200))(text_case))()
    settings(many, max_examples=200)(given(trial_ids, measured, params)(round_trip))()
    many(given(st.just(made), *hurt)(damage))()
