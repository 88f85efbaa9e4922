"""Settings refuse what cannot work, say where and why, and mean the same thing after a round trip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sdm_ray.config import (
    SweepSettings,
    TrialSettings,
    check_path,
    content_hash,
    json_schema,
    load_settings,
    override,
    parse_settings,
    to_yaml,
)
from sdm_ray.core.errors import UsageError
from tests import ROOT


def trial(*overrides: str) -> TrialSettings:
    return parse_settings(TrialSettings, {}, overrides)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.adversary.num_step=3", "did you mean 'train.adversary.num_steps'"),
        ("bogus=1", "unknown setting 'bogus'; the top level has: attack, data"),
        ("train.adversary.num_steps=-1", "train.adversary.num_steps: got -1, should be greater than or equal to 0"),
        ("train.num_outer_steps=many", "train.num_outer_steps: got 'many', should be a valid integer"),
        ("train.adversary.pool=3", "train.adversary.pool: got 3"),
        ("train.adversary.learning_rate_initial=1", "must lie in learning_rate"),
        ("train.adversary.learning_rate={low: 1, high: 0.1}", "low (1) must not exceed high (0.1)"),
        ("train.method=other", "train.method: got 'other'"),
        ("train.blocking.desired_base=0", "desired_base must be above 0"),
        ("train.learning_rate=.inf", "train.learning_rate: got inf"),
        ("data.splits.test=0.5", "must sum to 1"),
        ("attack.num_steps_min=900", "num_steps_min (900) must not exceed num_steps_max"),
        ("attack.num_examples=[20, 20]", "must not repeat a value"),
        ("attack.batch_sizes=[]", "attack.batch_sizes"),
        ("encoder.pooling=max", "encoder.pooling: got 'max'"),
        ("runtime.num_threads=0", "runtime.num_threads: got 0"),
        ("data.source=bios.parquet", "encoder.name 'builtin' knows the words of the synthetic world alone"),
        (
            "seed=18446744073709551616",
            "seed: got 18446744073709551616, should be less than or equal to 4611686018427387904",
        ),
        ("attack.seed=9223372036854775807", "attack.seed: got 9223372036854775807, should be less"),
        ("data.split_seed=18446744073709551616", "data.split_seed: got 18446744073709551616, should be less"),
        ("train.desired_batch_size=1000000000", "train.desired_batch_size: got 1000000000, should be less"),
        ("attack.batch_sizes=[1000000000]", "attack.batch_sizes.0: got 1000000000, should be less"),
        ("data.max_length=1000000000", "data.max_length: got 1000000000, should be less"),
        ("train.num_outer_steps=4294967296", "train.num_outer_steps: got 4294967296, should be less"),
        ("attack.num_examples=[99999999999]", "got 99999999999, should be less"),
        ("train.learning_rate=1e39", "train.learning_rate: got 1e+39, should be less"),
        ("noequals", "write it as dotted.path=value"),
        ("seed=[1", "not valid YAML"),
    ],
)
def test_bad_values_name_path_value_and_rule(assignment: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        trial(assignment)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["train.method=tuned", "train.blocking.harmful_base=1"], "does not block"),
        (["train.method=ac", "train.blocking.harmful_adapted=1"], "uses blocking.harmful_base alone"),
        (["train.blocking.harmful_base=1"], "needs a blocking term besides harmful_base"),
        (["train.adversary.num_steps=0"], "needs an adversary"),
        (["train.method=erase", "train.blocking.harmful_base=1"], "does not block"),
        (["train.method=erase", "train.erase.num_directions=0"], "set erase.num_directions above 0"),
        (["train.method=tuned", "train.erase.num_directions=2"], "'tuned' erases nothing"),
        (["train.method=tuned", "train.erase.num_products=1"], "erase.num_products is 1"),
        (
            ["data.source=regression", "encoder.name=mlp", "train.erase.num_directions=2"],
            "has no residual stream of tokens",
        ),
        (["train.method=distil", "train.blocking.harmful_base=1"], "does not block"),
        (["train.method=distil", "train.distil.num_steps=0"], "set distil.num_steps above 0"),
        (["train.method=tuned", "train.distil.num_steps=2"], "'tuned' distils nothing"),
        (["train.method=distilled_scratch", "train.distil.alpha=0.5"], "'distilled_scratch' keeps no weight"),
        (["train.method=distil", "train.distil.adversaries=true"], "'distil' has no adversaries"),
        (["train.distil={output_weight: 0, feature_weight: 0}"], "nothing is left"),
        (["train.distil={output_weight: 0, num_steps: 5}"], "only the outputs train it"),
        (["data.source=regression", "encoder.name=mlp", "train.distil.num_steps=2"], "has no texts to distil on"),
    ],
)
def test_inconsistent_methods_are_refused(assignments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trial(*assignments)


def test_a_method_brings_its_own_default_term() -> None:
    assert trial("train.method=mlac").train.blocking.harmful_adapted_calibrated == 1
    assert trial("train.method=ac").train.blocking.harmful_base == 1
    assert trial("train.method=mlac", "train.blocking.gradient_coupling=1").train.blocking.weights() == {
        "gradient_coupling": 1
    }
    assert trial("train.method=tuned").train.blocking.weights() == {}


def test_another_method_keeps_the_budget_and_drops_what_it_does_not_use() -> None:
    settings = trial("train.num_outer_steps=77", "train.adversary.pool.size=4", "train.blocking.harmful_adapted=2")
    tuned = settings.train.for_method("tuned")
    assert tuned.num_outer_steps == 77
    assert tuned.adversary.pool.size == 0
    assert settings.train.for_method("mlac") is settings.train


def test_erasure_goes_with_methods_that_erase() -> None:
    assert trial("train.method=erase").train.erase.num_directions == 6
    assert trial("train.method=erase", "train.erase.estimator=leace").train.erase.num_directions == 6
    searched = trial("train.erase.num_directions=4", "train.erase.estimator=leace").train
    assert searched.for_method("erase").erase == searched.erase
    assert searched.for_method("tuned").erase == trial().train.erase


def test_what_erases_nothing_has_the_identity_of_before() -> None:
    assert "erase" not in trial().train.identity()
    assert "erase" in trial("train.erase.num_directions=1").train.identity()
    assert content_hash(trial("train.erase.num_directions=1")) != content_hash(trial())


def test_distillation_goes_with_methods_that_distil() -> None:
    plain, scratch = trial("train.method=distil").train, trial("train.method=distilled_scratch").train
    assert (plain.distil.num_steps, set(plain.distil.alphas())) == (600, {0.5})
    assert (scratch.distil.num_steps, set(scratch.distil.alphas())) == (600, {1.0})
    own = trial(
        "train.distil={num_steps: 7, alpha_by_depth: {embedding: 0.1}, adversaries: true, temperature: 3}"
    ).train
    assert tuple(own.distil.alphas()) == (0.1, 0.5, 0.5)
    kept = own.distil.model_dump() | {"adversaries": False}
    assert own.for_method("distil").distil.model_dump() == kept
    assert own.for_method("distilled_scratch").distil.model_dump() == kept | {
        "alpha": 1.0,
        "alpha_by_depth": dict.fromkeys(("embedding", "lower", "upper")),
    }
    assert trial().train.for_method("distilled_scratch").distil.num_steps == 600
    assert own.for_method("erase").distil == trial().train.distil
    phase = own.of_distillation()
    assert (phase.num_outer_steps, phase.learning_rate) == (7, 1e-3)
    assert phase.blocking.weights() == own.blocking.weights() != {}
    quiet = own.model_copy(update={"distil": own.distil.model_copy(update={"adversaries": False})})
    assert quiet.of_distillation().blocking.weights() == {}


def test_what_distils_nothing_has_the_identity_of_before() -> None:
    assert "distil" not in trial().train.identity()
    assert "distil" in trial("train.distil.num_steps=1").train.identity()
    assert content_hash(trial("train.distil.num_steps=1")) != content_hash(trial())
    assert content_hash(trial()) == "7905431fcd30"


def test_settings_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        trial().seed = 3  # type: ignore[misc]


def test_yaml_round_trip(tmp_path: Path) -> None:
    settings = trial("seed=3", "train.learning_rate=3e-4", "data.source=a.parquet", "encoder.name=some/encoder")
    path = tmp_path / "trial.yaml"
    path.write_text(to_yaml(settings))
    assert load_settings(TrialSettings, path) == settings


def test_exponents_without_a_dot_are_numbers() -> None:
    assert trial("train.learning_rate=3e-4").train.learning_rate == pytest.approx(3e-4)


def test_content_hash_counts_what_matters() -> None:
    base = content_hash(trial())
    assert content_hash(trial("name=other", "runtime.num_threads=2")) == base
    assert content_hash(trial("seed=1")) != base
    assert content_hash(trial("train.adversary.pool.size=2")) != base
    assert content_hash(trial("attack.seed=1")) != base


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("- 1", "must hold a mapping of settings, found list"),
        ("seed: 1\nseed: 2", "'seed' appears twice, line 2"),
        ("seed: x", "seed: got 'x'"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_settings(TrialSettings, path)
    assert message in str(caught.value)
    assert "bad.yaml" in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml does not exist"):
        load_settings(TrialSettings, tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        load_settings(TrialSettings, tmp_path)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_settings(SweepSettings, path) == SweepSettings()


def test_override_replaces_by_path_and_validates_the_whole() -> None:
    settings = override(trial(), {"train.adversary.pool.size": 8, "train.adversary.num_steps": 0})
    assert settings.train.adversary.pool.size == 8
    with pytest.raises(UsageError, match=r"train\.adversary\.num_steps"):
        override(settings, {"train.adversary.num_steps": -1})
    with pytest.raises(UsageError, match="needs an adversary"):
        override(settings, {"train.adversary.pool.size": 0})


def test_check_path_knows_every_setting() -> None:
    check_path(TrialSettings, "train.adversary.pool.learning_rate.low")
    with pytest.raises(UsageError, match=r"did you mean 'train\.adversary\.pool'"):
        check_path(TrialSettings, "train.adversary.poool.size")
    with pytest.raises(UsageError, match="no settings below"):
        check_path(TrialSettings, "seed.x")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"type": "float", "low": 2, "high": 1}, "low (2) must not exceed high (1)"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "must be above 0 on a logarithmic scale"),
        ({"type": "int", "low": 3, "high": 2}, "low (3) must not exceed high (2)"),
        ({"type": "categorical", "choices": []}, "space.seed.choices"),
        ({"type": "gaussian"}, "gaussian"),
    ],
)
def test_bad_distributions(space: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_settings(SweepSettings, {"space": {"seed": space}})
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [TrialSettings, SweepSettings])
def test_schema_describes_every_field(kind: type[TrialSettings] | type[SweepSettings]) -> None:
    schema = json_schema(kind)
    json.dumps(schema)
    undocumented = [
        f"{name}.{field}"
        for name, definition in [(kind.__name__, schema), *schema["$defs"].items()]
        for field, value in definition.get("properties", {}).items()
        if "description" not in value and field != "type"
    ]
    assert not undocumented


SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_shipped_files_are_valid(path: Path) -> None:
    kind = SweepSettings if "trial" in yaml.safe_load(path.read_text()) else TrialSettings
    load_settings(kind, path)


def test_what_is_switched_off_is_not_checked() -> None:
    steps = {"every_steps": 500, "screen_steps": 300}
    assert not TrialSettings.model_validate({"scratch": {"enabled": False, **steps}}).scratch.enabled
    with pytest.raises(ValueError, match="every_steps"):
        TrialSettings.model_validate({"scratch": steps})


def test_several_faults_of_a_file_are_a_line_each() -> None:
    with pytest.raises(UsageError) as error:
        parse_settings(TrialSettings, {"seed": -1, "train": {"learning_rate": 0}}, where="it.yaml")
    first, *lines = str(error.value).splitlines()
    assert first == "it.yaml: 2 faults:"
    assert [line.split(":")[0] for line in lines] == ["  seed", "  train.learning_rate"]


SPACE = {"space": {"train.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2}}}


def test_set_reaches_into_keys_with_dots_and_into_lists() -> None:
    """Keys of `space`, `variants` and `search.points` are dotted paths themselves."""
    document = SPACE | {
        "search": {"points": [{"train.learning_rate": 1e-4}]},
        "variants": {"k4": {"train.adversary.num_steps": 2}},
    }
    changed = parse_settings(
        SweepSettings,
        document,
        [
            "space.train.learning_rate.high=1e-3",
            "space.train.num_outer_steps={type: int, low: 1, high: 2}",
            "search.points.0.train.learning_rate=1e-3",
            "variants.k4.train.adversary.num_steps=4",
            "variants.k4.train.learning_rate=5e-4",
        ],
    )
    assert changed.space["train.learning_rate"].high == 1e-3  # type: ignore[union-attr]
    assert changed.space["train.num_outer_steps"].low == 1  # type: ignore[union-attr]
    assert changed.search.points == ({"train.learning_rate": 1e-3},)
    assert changed.variants == {"k4": {"train.adversary.num_steps": 4, "train.learning_rate": 5e-4}}
    assert document["search"] == {"points": [{"train.learning_rate": 1e-4}]}, "what was given stays"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space.train.weight.high=1", r"--set space\.train\.weight\.high: space holds no 'train\.weight\.high' yet"),
        ("search.points.1.x=2", r"--set search\.points\.1\.x: '1' is no item of a list, which has no items here"),
        ("trial.attack.num_examples.0=5", r"no list trial\.attack\.num_examples is set here"),
        ("objectives.first=2", r"'first' is no item of a list, which has items 0 to 0 here"),
    ],
)
def test_set_says_where_a_path_leads_nowhere(text: str, message: str) -> None:
    document = SPACE | {"search": {"points": []}, "objectives": [{"metric": "m", "direction": "minimize"}]}
    with pytest.raises(UsageError, match=message):
        parse_settings(SweepSettings, document, [text])
