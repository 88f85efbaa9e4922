"""Two distributions of adversaries are disjoint exactly where one dimension keeps them apart, and say where not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sdm_ray.config import AdversarySettings
from sdm_ray.config.support import Support, overlaps

TRAINED = Support(
    name="fresh adversaries",
    optimizers=frozenset({"adam", "sgd"}),
    adaptations=frozenset({"full"}),
    learning_rate=(1e-4, 1e-3),
    num_steps=(1, 20),
)


def attacker(**values: Any) -> Support:
    return Support(name="attackers", **values)


def supports(**values: Any) -> tuple[Support, ...]:
    return AdversarySettings.model_validate(values).supports()


def adaptations(**values: Any) -> set[str]:
    return {adaptation for support in supports(**values) for adaptation in support.adaptations or ()}


@pytest.mark.parametrize(
    "values",
    [
        {"optimizers": frozenset({"adamw", "rmsprop"})},
        {"adaptations": frozenset({"lora"})},
        {"learning_rate": (1e-2, 1e-1)},
        {"learning_rate": (1e-6, 1e-5)},
        {"num_steps": (21, 200)},
        {"optimizers": frozenset({"adam"}), "num_steps": (100, 200)},
    ],
    ids=["optimisers", "LoRA against none", "a decade above", "a decade below", "more steps", "one of two"],
)
def test_one_dimension_without_a_common_value_keeps_apart(values: dict[str, Any]) -> None:
    assert not overlaps([TRAINED], [attacker(**values)])
    assert not overlaps([attacker(**values)], [TRAINED])
    assert overlaps([TRAINED], [attacker(**values)]) == []


@pytest.mark.parametrize(
    ("values", "phrase"),
    [
        ({"optimizers": frozenset({"adam", "rmsprop"})}, "optimizers adam"),
        ({"optimizers": frozenset({"sgd", "adam"})}, "optimizers adam, sgd"),
        ({"learning_rate": (5e-4, 1e-1)}, "learning rate 0.0005 to 0.001"),
        ({"learning_rate": (1e-3, 1e-1)}, "learning rate 0.001 to 0.001"),
        ({"num_steps": (10, 200)}, "num steps 10 to 20"),
        ({"learning_rate": (2e-4, 3e-4), "num_steps": (5, 6)}, "learning rate 0.0002 to 0.0003; num steps 5 to 6"),
    ],
)
def test_what_both_can_give_is_said_in_words(values: dict[str, Any], phrase: str) -> None:
    expected = f"fresh adversaries and attackers can both give {phrase}"
    assert overlaps([TRAINED], [attacker(**values)]) == [expected]
    assert overlaps([TRAINED], [attacker(**values)])


def test_a_dimension_that_only_one_restricts_keeps_nothing_apart() -> None:
    other = attacker(ranks=frozenset({4}), heads=frozenset({"reset"}), num_examples=(1, 2))
    assert overlaps([TRAINED], [other]) == ["fresh adversaries and attackers can both give any adversary"]
    assert overlaps([Support(name="all")], [TRAINED])


def test_no_adversaries_overlap_with_nothing() -> None:
    assert not overlaps([], [TRAINED])
    assert not overlaps([TRAINED], [])


def test_each_overlapping_pair_is_named() -> None:
    pool = Support(name="pool", optimizers=frozenset({"sgd"}))
    found = overlaps(iter([TRAINED, pool]), iter([attacker(), attacker(optimizers=frozenset({"adam"}))]))
    assert [line.partition(" can both")[0] for line in found] == [
        "fresh adversaries and attackers", "fresh adversaries and attackers", "pool and attackers"
    ]  # fmt: skip


def test_settings_tell_what_they_can_draw() -> None:
    (support,) = supports(
        optimizers=["sgd", "adam"], learning_rate_schedules=["constant", "linear"], batch_sizes=[4, 8],
        learning_rate_mode="log_uniform", learning_rate={"low": 1e-5, "high": 1e-3}, num_steps=9, num_steps_min=2,
        head="mixture", subset_size=50,
    )  # fmt: skip
    assert support == Support(
        name="fresh adversaries (full)",
        optimizers=frozenset({"sgd", "adam"}),
        schedules=frozenset({"constant", "linear"}),
        adaptations=frozenset({"full"}),
        edits=frozenset({"released"}),
        edit_amount=(0.0, 0.0),
        heads=frozenset({"meta_learned", "reset"}),
        batch_sizes=frozenset({4, 8}),
        learning_rate=(1e-5, 1e-3),
        num_steps=(2, 9),
        num_examples=(50, 50),
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"full"}),
        ({"frozen_probability": 0.0, "lora_probability": 0.5}, {"full", "lora"}),
        ({"frozen_probability": 1.0}, {"head"}),
        ({"lora_probability": 1.0}, {"lora"}),
        ({"partly_frozen_probability": 1.0}, {"partial"}),
        ({"frozen_probability": 0.7, "partly_frozen_probability": 0.2, "lora_probability": 0.1},
         {"head", "partial", "lora"}),
        ({"frozen_probability": 0.1, "partly_frozen_probability": 0.1, "lora_probability": 0.1},
         {"full", "head", "partial", "lora"}),
    ],
)  # fmt: skip
def test_what_has_no_probability_is_not_in_the_support(values: dict[str, Any], expected: set[str]) -> None:
    assert adaptations(**values) == expected


def test_ranks_restrict_low_rank_adversaries_alone() -> None:
    ranks = {next(iter(s.adaptations or ())): s.ranks for s in supports(lora_probability=0.5, lora_ranks=[2, 8])}
    assert ranks == {"lora": frozenset({2, 8}), "full": None}
    lora = attacker(adaptations=frozenset({"lora"}), ranks=frozenset({32}))
    assert not overlaps(supports(lora_probability=0.5, lora_ranks=[2, 8]), [lora])
    assert overlaps(supports(lora_probability=0.5, lora_ranks=[2, 32]), [lora])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_steps": 5}, (5, 5)),
        ({"num_steps": 5, "num_steps_min": 2}, (2, 5)),
        ({"num_steps": 5, "growing_steps": 100}, (1, 5)),
        ({"num_steps": 5, "num_steps_min": 2, "growing_steps": 100}, (2, 5)),
    ],
)
def test_numbers_of_steps(values: dict[str, Any], expected: tuple[int, int]) -> None:
    assert [support.num_steps for support in supports(**values)] == [expected]


def test_a_fixed_rate_is_all_there_is() -> None:
    (support,) = supports(learning_rate_mode="fixed", learning_rate_initial=0.001)
    assert support.learning_rate == (0.001, 0.001)


def test_members_of_the_pool_are_listed() -> None:
    pool = {"size": 4, "lifespan_steps": 60, "subset_size": 30, "learning_rate": {"low": 1e-4, "high": 1e-2}}
    fresh, member = supports(pool=pool, optimizers=["sgd"], num_steps=3, learning_rate_schedules=["cosine"])
    assert (fresh.name, member.name) == ("fresh adversaries (full)", "persistent adversaries")
    assert member == Support(
        name="persistent adversaries",
        optimizers=frozenset({"sgd"}),
        schedules=frozenset({"constant"}),
        adaptations=frozenset({"full", "head"}),
        edits=frozenset({"released"}),
        edit_amount=(0.0, 0.0),
        heads=frozenset({"reset"}),
        batch_sizes=frozenset({8, 16, 24}),
        learning_rate=(1e-4, 1e-2),
        num_steps=(1, 60),
        num_examples=(30, 30),
    )
    assert [s.name for s in supports(pool=pool, num_steps=0)] == ["persistent adversaries"]
    assert supports(num_steps=0) == ()
    long_attack = attacker(schedules=frozenset({"constant"}), num_steps=(50, 50))
    assert not overlaps(supports(num_steps=3), [long_attack])
    assert overlaps(supports(num_steps=3, pool=pool), [long_attack])


@pytest.mark.parametrize(("probability", "expected"), [(0.0, {"full"}), (1.0, {"head"}), (0.2, {"full", "head"})])
def test_adaptations_of_the_pool(probability: float, expected: set[str]) -> None:
    assert adaptations(num_steps=0, pool={"size": 1, "frozen_probability": probability}) == expected


def test_starts_are_listed_by_the_attacks_name_of_each_edit() -> None:
    starts = {"pruned": 0.5, "rescaled": 2.0, "redrawn_layers": 0.1, "redrawn_counts": [1, 3]}
    found = supports(starts=starts, pool={"size": 1})
    listed = {(support.name, *(support.edits or ()), support.edit_amount) for support in found}
    assert listed == {
        (f"{who}{words}", edit, amount)
        for who, ending in (("fresh adversaries (full", ")"), ("persistent adversaries", ""))
        for words, edit, amount in (
            (ending, "released", (0.0, 0.0)),
            (f"{', ' if ending else ' ('}rescaled)", "rescale_columns+rescale_gains", (0.75, 1.0)),
            (f"{', ' if ending else ' ('}redrawn_layers)", "reinit", (1.0, 3.0)),
            (f"{', ' if ending else ' ('}pruned)", "prune", (0.1, 0.5)),
        )
    }
    assert not overlaps(supports(), [attacker(edits=frozenset({"prune"}), edit_amount=(0.3, 0.3))])
    assert overlaps(supports(starts=starts), [attacker(edits=frozenset({"prune"}), edit_amount=(0.3, 0.3))])
    assert not overlaps(supports(starts=starts), [attacker(edits=frozenset({"prune"}), edit_amount=(0.7, 0.7))])
    assert not overlaps(supports(starts={"released": 0.0, "pruned": 1.0}), [attacker(edits=frozenset({"released"}))])


def test_parameter_noise_is_the_edit_noise_of_fresh_adversaries() -> None:
    noisy = attacker(edits=frozenset({"noise"}), edit_amount=(0.1, 0.1))
    assert overlaps(supports(parameter_noise=0.2), [noisy])
    assert not overlaps(supports(parameter_noise=0.05), [noisy])
    assert not overlaps(supports(parameter_noise=0.2, num_steps=0, pool={"size": 1}), [noisy])


def test_starts_without_any_weight_are_refused() -> None:
    with pytest.raises(ValidationError, match="all weights are 0, so no adversary could start; set released above 0"):
        supports(starts={"released": 0.0})


def test_a_distribution_without_edits_has_the_identity_of_before() -> None:
    assert not {"starts", "head_kinds"} & AdversarySettings().identity().keys()
    assert "head_kinds" in AdversarySettings.model_validate({"head_kinds": ["max"]}).identity()
    starts = AdversarySettings.model_validate({"starts": {"noise": 0.1}}).identity()["starts"]
    assert not any(name.startswith("benign_first") for name in starts)
    assert "benign_first" in AdversarySettings.model_validate({"starts": {"benign_first": 1.0}}).identity()["starts"]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {
            "num_adversaries": 3, "num_steps": 8, "num_steps_min": 2, "growing_steps": 50,
            "optimizers": ["sgd", "adamw"], "learning_rate_mode": "log_uniform",
            "learning_rate": {"low": 1e-5, "high": 3e-3}, "learning_rate_schedules": ["warmup", "cosine"],
            "head": "mixture", "frozen_probability": 0.1, "partly_frozen_probability": 0.2, "lora_probability": 0.3,
            "lora_ranks": [2], "subset_size": 40, "parameter_noise": 0.05, "starts": {"noise": 0.5},
            "pool": {"size": 4, "subset_size": None, "second_order": True},
        },
    ],
    ids=["defaults", "everything"],
)  # fmt: skip
def test_settings_survive_json(values: dict[str, Any]) -> None:
    settings = AdversarySettings.model_validate(values)
    again = AdversarySettings.model_validate_json(settings.model_dump_json())
    assert again == settings
    assert again.version == 1
    assert again.supports() == settings.supports()


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(ValidationError, match="version"):
        AdversarySettings.model_validate({"version": 2})


def test_an_initial_rate_counts_only_where_there_is_one() -> None:
    above = {"learning_rate": {"low": 1e-3, "high": 1e-2}, "learning_rate_initial": 1e-4}
    assert AdversarySettings.model_validate(above | {"learning_rate_mode": "log_uniform"}).learning_rate.low == 1e-3
    for mode in ("fixed", "meta_learned"):
        with pytest.raises(ValueError, match="learning_rate_initial"):
            AdversarySettings.model_validate(above | {"learning_rate_mode": mode})
