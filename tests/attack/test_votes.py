"""What readers of the same examples say together."""

from __future__ import annotations

import torch

from sdm_ray.attack.committee import vote
from sdm_ray.attack.engine.executor import Outcome
from sdm_ray.attack.families.base import Attacker


def outcome(scores: list[list[float]], seconds: float) -> Outcome:
    attacker = Attacker(family="token_probe", num_examples=4, trains="probe", probe="token_probe")
    values = torch.tensor(scores)
    return Outcome(attacker, "ok", seconds, flops=1.0, val_logits=values, test_logits=values)


LABELS = torch.tensor([0, 1] * 40)


def readers(errors: list[int], scale: float = 1.0) -> Outcome:
    """A reader that is wrong on some texts, as sure of each."""
    right = torch.nn.functional.one_hot(LABELS, 2).double()
    right[errors] = right[errors].flip(1)
    return outcome((scale * right).tolist(), 1.0)


def said(found: Outcome) -> list[int]:
    assert found.test_logits is not None
    return [int(row) for row in (found.test_logits.argmax(1) != LABELS).nonzero()[:, 0]]


def test_a_vote_weighs_members_alike_whatever_their_scale() -> None:
    members = [readers([0, 3, 5]), readers([0, 9, 11], 100.0), readers([1, 3, 9], 0.01)]
    found = vote(members, LABELS)
    assert said(found) == [0, 3, 9], "two against one"
    assert found.seconds == 3.0
    assert found.flops == 3.0


def test_a_reader_that_validation_does_not_bear_out_is_not_heeded() -> None:
    wrong = readers(list(range(0, 80, 3)))
    assert said(vote([wrong, wrong, wrong, readers([0])], LABELS)) == [0]


def test_kinds_of_texts_have_readers_of_their_own() -> None:
    kind = torch.arange(80) >= 40
    for_one, for_other = readers(list(range(40, 80, 2))), readers(list(range(0, 40, 2)))
    assert said(vote([for_one, for_other], LABELS, (kind, kind))) == []


def test_a_reader_that_is_wrong_on_one_kind_is_renamed_there() -> None:
    kind = torch.arange(80) >= 40
    assert said(vote([readers(list(range(40, 80)))], LABELS, (kind, kind))) == []


def test_a_kind_of_few_texts_is_read_with_the_others() -> None:
    kind = torch.arange(80) >= 70
    assert said(vote([readers(list(range(70, 80)))], LABELS, (kind, kind))) == list(range(70, 80))
