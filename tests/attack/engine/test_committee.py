"""What readers of the same examples say together."""

from __future__ import annotations

import torch

from sdm_ray.attack.engine.committee import vote
from sdm_ray.attack.engine.executor import Outcome
from sdm_ray.attack.families.base import Attacker


def outcome(scores: list[list[float]], seconds: float) -> Outcome:
    attacker = Attacker(family="token_probe", num_examples=4, trains="probe", probe="token_probe")
    values = torch.tensor(scores)
    return Outcome(attacker, "ok", seconds, flops=1.0, val_logits=values, test_logits=values)


def test_avote_weighs_members_alike_whatever_their_scale() -> None:
    sure = [[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]
    other = [[0.0, 100.0], [0.0, 100.0], [100.0, 0.0]]
    found = vote([outcome(sure, 1.0), outcome(sure, 1.0), outcome(other, 2.0)])
    assert found.test_logits is not None
    assert found.test_logits.argmax(1).tolist() == [0, 1, 0], "two against one"
    assert found.seconds == 4.0
    assert found.flops == 3.0
    shifted = [[a + 7.0, b + 7.0] for a, b in sure]
    again = vote([outcome(shifted, 1.0), outcome(sure, 1.0), outcome(other, 2.0)])
    assert again.test_logits is not None
    assert torch.allclose(again.test_logits, found.test_logits)
