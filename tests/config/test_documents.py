"""Settings files that begin from other files, take values from the environment, and read alike in YAML 1.1 and 1.2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdm_ray.config import SweepSettings, TrialSettings, load_settings, override, parse_settings, read_document, to_yaml
from sdm_ray.core.errors import UsageError
from tests import ROOT

SHIPPED = [*sorted((ROOT / "sweeps").glob("*.yaml"))]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a file and gives its path; the working directory is another one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_a_file_extends_another_by_mappings(write: Any) -> None:
    """Mappings merge, whatever else replaces; entries of `space` and `variants` are whole, and null drops one."""
    write(
        "base/base.yaml",
        "seed: 1\n"
        "trial: {train: {num_outer_steps: 7, seed: null}, attack: {num_examples: [20, 50]}}\n"
        "space:\n  a: {type: float, low: 1, high: 2, log: true}\n  b: {type: int, low: 1, high: 2}\n"
        "variants: {k4: {x: 1, y: 2}}\n",
    )
    child = write(
        "child.yaml",
        "extends: base/base.yaml\n"
        "trial: {train: {learning_rate: 1e-3}, attack: {num_examples: [4]}}\n"
        "space:\n  a: {type: categorical, choices: [1]}\n  b: null\n  c: {type: int, low: 1, high: 3}\n"
        "variants: {k4: {x: 3}}\n",
    )
    assert read_document(child) == {
        "seed": 1,
        "trial": {
            "train": {"num_outer_steps": 7, "seed": None, "learning_rate": 1e-3},
            "attack": {"num_examples": [4]},
        },
        "space": {"a": {"type": "categorical", "choices": [1]}, "c": {"type": "int", "low": 1, "high": 3}},
        "variants": {"k4": {"x": 3}},
    }


def test_several_bases_and_the_trial_of_a_sweep(write: Any) -> None:
    """Later files count more, files of files too, and a sweep's trial may be a trial file."""
    write("one.yaml", "{seed: 1, name: one, output_dir: a}")
    write("two.yaml", "{extends: deep/three.yaml, name: two}")
    write("deep/three.yaml", "{output_dir: three}")
    write("trial.yaml", "{seed: 5, train: {num_outer_steps: 3}}")
    sweep = write(
        "sweep.yaml", "{extends: [one.yaml, two.yaml], trial: {extends: trial.yaml, train: {warmup_steps: 2}}}"
    )
    assert read_document(sweep) == {
        "seed": 1,
        "name": "two",
        "output_dir": "three",
        "trial": {"seed": 5, "train": {"num_outer_steps": 3, "warmup_steps": 2}},
    }
    settings = load_settings(SweepSettings, sweep)
    stored = write("stored.yaml", to_yaml(settings))
    for name in ("one", "two", "trial"):
        write(f"{name}.yaml", "nonsense: true")
    assert load_settings(SweepSettings, stored) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: a.yaml", r"a\.yaml extends itself \(a\.yaml extends a\.yaml\)"),
        ("extends: b.yaml", r"a\.yaml extends itself \(a\.yaml extends b\.yaml extends a\.yaml\); drop one `extends`"),
        ("trial: {extends: a.yaml}", r"a\.yaml extends itself"),
        ("extends: none.yaml", r"a\.yaml: extends names 'none\.yaml', and .*none\.yaml is no file"),
        ("extends: []", r"extends is \[\], and must be a file's name or a list of them"),
        ("extends: {a: 1}", r"extends is \{'a': 1\}"),
        ("extends: bad.yaml", r"bad\.yaml must hold a mapping"),
        ("extends: odd.yaml", r"a\.yaml \(extends .*odd\.yaml\): unknown setting 'sede'; did you mean 'seed'"),
    ],
)
def test_what_cannot_be_extended_is_said(write: Any, text: str, message: str) -> None:
    write("b.yaml", "extends: a.yaml")
    write("bad.yaml", "- 1")
    write("odd.yaml", "sede: 1")
    with pytest.raises(UsageError, match=message):
        load_settings(TrialSettings, write("a.yaml", text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: ${env:NUMBER}", 3e-4),
        ("a: '${env:NUMBER}'", "3e-4"),
        ("a: ${env:TEXT}/x-${env:NUMBER}", "some text/x-3e-4"),
        ("a: ${env:UNSET:-12}", 12),
        ("a: ${env:EMPTY:-12}", 12),
        ("a: ${env:EMPTY}", None),
        ("a: ${env:UNSET:-}", None),
        ("a: $${env:UNSET}", "${env:UNSET}"),
        ("a: '$${env:'", "${env:"),
        ("a: ['${env:TEXT}', $HOME]", ["some text", "$HOME"]),
        ("a: ${env:NESTED}", "${env:NUMBER}"),
    ],
)
def test_values_come_from_the_environment(
    write: Any, monkeypatch: pytest.MonkeyPatch, text: str, expected: object
) -> None:
    monkeypatch.delenv("UNSET", raising=False)
    for name, value in (("NUMBER", "3e-4"), ("TEXT", "some text"), ("EMPTY", ""), ("NESTED", "${env:NUMBER}")):
        monkeypatch.setenv(name, value)
    assert read_document(write("a.yaml", text)) == {"a": expected}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x: 1\na: ${env:UNSET}",
            r"a\.yaml, line 2: the environment variable UNSET is not set; set it, or write \$\{env:U",
        ),
        ("a: ${env:}", r"line 1: '\$\{env:\}' names no environment variable"),
        ("a: {b: ${env:UNSET}}", r"is not valid YAML: .*quote \$\{env:\.\.\.\}"),
    ],
)
def test_what_the_environment_lacks_is_said(
    write: Any, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.delenv("UNSET", raising=False)
    with pytest.raises(UsageError, match=message):
        read_document(write("a.yaml", text))
    with pytest.raises(UsageError, match=r"--set 'name=\$\{env:UNSET\}': line 1: the environment variable UNSET"):
        parse_settings(TrialSettings, {}, ["name=${env:UNSET}"])


@pytest.mark.parametrize(
    "name", ["1e5", "3E-4", "on", "0o14", "1_000", "${env:HOME}", "$${env:X}", "a: b", "~", "1:30"]
)
def test_text_that_looks_like_something_else_stays_text(write: Any, name: str) -> None:
    settings = override(TrialSettings(), {"name": name})
    text = to_yaml(settings)
    assert load_settings(TrialSettings, write("a.yaml", text)) == settings
    if "$" not in name:
        assert yaml.safe_load(text)["name"] == name, "another reader takes it for text too"


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (TrialSettings, "{space: {}, trial: {}, name: x}", r"a\.yaml holds the settings of a sweep \(space, trial\)"),
        (
            SweepSettings,
            "{train: {}, seed: 1}",
            r"a\.yaml holds the settings of a trial \(train\), and those of a sweep",
        ),
        (SweepSettings, "{train: {}, space: {}}", "unknown setting 'train'"),
    ],
)
def test_a_file_of_the_other_kind_is_told(write: Any, kind: type[TrialSettings], text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_settings(kind, write("a.yaml", text))


def test_the_example_of_the_readme_is_read(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "sweeps" / "README.md").read_text(), re.DOTALL)
    write("quickstart.yaml", (ROOT / "sweeps" / "quickstart.yaml").read_text())
    settings = load_settings(SweepSettings, write("mine.yaml", example))
    base = load_settings(SweepSettings, ROOT / "sweeps" / "quickstart.yaml")
    assert (settings.name, settings.trial.train.num_outer_steps) == ("night-by-hand", 1000)
    assert settings.trial.attack == base.trial.attack
    assert base.space.keys() - settings.space.keys() == {"train.embedding_map_learning_rate"}


CORE = {
    "null": r"null|Null|NULL|~|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
"""Plain scalars in the core schema of YAML 1.2 (section 10.3.2)."""


def core_tag(value: str) -> str:
    found = next((name for name, pattern in CORE.items() if re.fullmatch(pattern, value)), "str")
    return f"tag:yaml.org,2002:{found}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: {max_hours: 1:30}", "search.max_hours: got '1:30'"),
        ("search: {num_trials: 0x10}", "search.num_trials: got '0x10'"),
        ("search: {num_trials: 0b11}", "search.num_trials: got '0b11'"),
        ("search: {num_trials: off}", "search.num_trials: got False, must be a number"),
        ("search: {max_hours: on}", "search.max_hours: got True, must be a number"),
        ("trial: {train: {learning_rate: true}}", "trial.train.learning_rate: got True, must be a number"),
        ("trial: {attack: {num_examples: [yes]}}", r"trial.attack.num_examples: got \[True\], must be a number"),
        ("trial: {train: {blocking: {custom: {a: yes}}}}", "trial.train.blocking.custom: got .*, must be a number"),
        ("space: {seed: {type: int, low: no, high: 3}}", "space.seed.low: got False, must be a number"),
    ],
)
def test_what_only_yaml_1_1_calls_a_number_is_refused(write: Any, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_settings(SweepSettings, write("sweep.yaml", text))


def test_zeros_before_a_number_do_not_change_it(write: Any) -> None:
    text = "seed: 010\ntrial: {train: {num_outer_steps: 0600, learning_rate: 01.5}, data: {max_length: 1_0}}"
    settings = load_settings(SweepSettings, write("sweep.yaml", text))
    trial = settings.trial
    assert (settings.seed, trial.train.num_outer_steps, trial.train.learning_rate) == (10, 600, 1.5)
    assert trial.data.max_length == 10
    for name in ("010", "09", "1:30", "0x10", "1_0", "1e3", ".5"):
        assert (
            parse_settings(SweepSettings, read_document(write("again.yaml", to_yaml(SweepSettings(name=name))))).name
            == name
        )


def test_merge_keys_put_other_keys_in(write: Any) -> None:
    """Also where what is merged merges itself, and is met again; a key that is written twice is still refused."""
    text = "a: {b: {c: &c {<<: &d {x: 1, y: 2}, y: 3}}}\ne: {<<: *c, x: 4}\nf: {<<: [*c, *d], z: 5}\n"
    found = read_document(write("merge.yaml", text))
    assert found["a"]["b"]["c"] == {"x": 1, "y": 3}
    assert (found["e"], found["f"]) == ({"x": 4, "y": 3}, {"x": 1, "y": 3, "z": 5})
    with pytest.raises(UsageError, match="key 'x' appears twice, line 2"):
        read_document(write("twice.yaml", "a: &a {x: 1}\nb: {<<: *a, x: 2, x: 3}\n"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_read_alike_in_yaml_1_1_and_1_2(path: Path) -> None:
    text = path.read_text()
    assert yaml.safe_load(text) == read_document(path), "YAML 1.1"
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            read = yaml.SafeLoader("").resolve(yaml.ScalarNode, event.value, (True, False))
            assert read == core_tag(event.value), f"{event.value!r}, line {event.start_mark.line + 1}"


NESTED_ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trial: &a {train: *a}\n", "line 1: an alias names what it stands in"),
        ("trial: &a\n  <<: *a\n", "line 2: an alias names what it stands in"),
        ("trial: " + "[" * 3000 + "]" * 3000, "more than 40 values stand within each other"),
        (NESTED_ALIASES, "with its aliases followed the file holds more than 100000 values"),
        ("seed: " + "9" * 5000, r"line 1: 9+\.\.\. \(5000 characters\) cannot be read as int"),
        ("name: 2020-13-45\n", "line 1: 2020-13-45 cannot be read as timestamp; quote it"),
        ("\nname: !!bool abc\n", "line 2: abc cannot be read as bool"),
        ('output_dir: "a\\0b"\n', "line 1: .* holds a character that no file or name can"),
    ],
)
def test_yaml_that_cannot_be_held_is_refused_in_a_sentence(write: Any, text: str, message: str) -> None:
    """Recursion, depth, nested aliases and values that are not of their kind end with the line, at once."""
    with pytest.raises(UsageError, match=rf"bad\.yaml, {message}|bad\.yaml, line \d+: {message}"):
        read_document(write("bad.yaml", text))


def test_aliases_within_bounds_stand_for_what_they_name(write: Any) -> None:
    """An alias that is used twice is no recursion."""
    document = read_document(write("good.yaml", "a: &a {x: [1, 2]}\nb: [*a, *a]\n"))
    assert document["b"] == [{"x": [1, 2]}, {"x": [1, 2]}]
