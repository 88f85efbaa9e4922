"""Checks of the audit: what passes them and what does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sdm_ray.attack.findings.checks import attacker_support, check_label_flip
from sdm_ray.attack.report import AttackRecord
from sdm_ray.config import AdversarySettings
from sdm_ray.config.starts import StartKind
from sdm_ray.config.support import overlaps


def _rerun(accuracy: float, raw: float, own_head: bool = False) -> Any:
    return SimpleNamespace(phase="rerun", status="ok", own_head=own_head, val_accuracy=accuracy, val_raw_accuracy=raw)


FLIPS: dict[str, tuple[list[Any], bool]] = {
    "all of three": ([_rerun(0.9, 0.1)] * 3, False),
    "half of ten": ([_rerun(0.9, 0.1)] * 5 + [_rerun(0.9, 0.9)] * 5, False),
    "those with the released head": ([_rerun(0.9, 0.9)] * 30 + [_rerun(0.9, 0.1, own_head=True)] * 4, False),
    "one of three": ([_rerun(0.9, 0.1)] + [_rerun(0.9, 0.9)] * 2, True),
    "one alone": ([_rerun(0.9, 0.1)], True),
    "noise at chance, the better naming of which lies above it": ([_rerun(0.58, 0.42)] * 20, True),
    "nobody": ([], True),
}


@pytest.mark.parametrize(("records", "passed"), FLIPS.values(), ids=FLIPS)
def test_label_flips_are_told_from_noise(records: list[Any], passed: bool) -> None:
    report: Any = SimpleNamespace(records=records, num_classes=2, num_validation=300)
    assert check_label_flip(report).passed is passed


@pytest.mark.parametrize(
    ("start", "edit", "amounts"),
    [
        ("rescaled", "rescale_columns+rescale_gains", (1.0,)),
        ("redrawn_layers", "reinit", (1.0,)),
        ("pruned", "prune", (0.3,)),
        ("interpolated", "interpolate", (0.5,)),
        ("noise", "noise", (0.1, 0.1)),
        ("benign_first", "benign_first", (50.0,)),
    ],
)
def test_attackers_are_within_what_was_trained_against_if_their_edit_was_among_the_starts(
    start: StartKind, edit: str, amounts: tuple[float, ...]
) -> None:
    common: dict[str, Any] = {
        "family": "any",
        "num_examples": 4,
        "num_steps": 4,
        "batch_size": 8,
        "learning_rate": 1e-3,
    }
    record = _record(**common, edit=edit, amount=amounts[0], amounts=amounts if len(amounts) > 1 else ())
    stronger = _record(**common, edit=edit, amount=600.0)
    probe = _record(**common | {"trains": "probe", "amount": 3.0, "own_head": True})

    def within(one: AttackRecord, **starts: float) -> bool:
        values = {"starts": starts, "head": "reset"}
        return bool(overlaps([attacker_support(one)], AdversarySettings.model_validate(values).supports()))

    assert within(record, **{start: 0.5})
    assert not within(stronger, **{start: 0.5}), "by more than any adversary"
    assert not within(record, released=1.0)
    assert not within(probe, **{start: 0.5})
    plain = _record(**common, amount=0.0)
    assert within(plain, released=1.0)
    assert not within(plain, **{"released": 0.0, start: 0.5})


@pytest.mark.parametrize(("kind", "pooling"), [("attention", "attention"), ("max", "maximum")])
def test_attackers_whose_heads_read_tokens_are_within_it_if_adversaries_had_such_heads(kind: str, pooling: str) -> None:
    common: dict[str, Any] = {"family": "any", "num_examples": 4, "num_steps": 4, "batch_size": 8}
    record, plain = _record(**common, pooling=pooling), _record(**common)

    def within(one: AttackRecord, *kinds: str) -> bool:
        settings = AdversarySettings.model_validate({"head_kinds": kinds, "head": "reset", "pool": {"size": 1}})
        return bool(overlaps([attacker_support(one)], settings.supports()))

    assert within(record, kind)
    assert not within(record, "pooled")
    assert not within(plain, kind)
    assert within(plain, kind, "pooled")


def _record(**values: Any) -> AttackRecord:
    return AttackRecord(status="ok", examples_seen=0, seconds=0.0, **values)
