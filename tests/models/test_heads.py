"""Heads: their distribution, their seed, and how they broadcast."""

from __future__ import annotations

import torch

from sdm_ray.models.heads import init_head, logits


def test_init_head_is_normal_and_follows_its_generator() -> None:
    head = init_head(400, 50, torch.Generator().manual_seed(3))
    assert head.shape == (50, 400)
    assert not head.requires_grad
    assert abs(float(head.mean())) < 5e-4
    assert abs(float(head.std()) - 0.02) < 5e-4
    assert torch.equal(head, init_head(400, 50, torch.Generator().manual_seed(3)))
    state = torch.random.get_rng_state()
    assert not torch.equal(head, init_head(400, 50, torch.Generator().manual_seed(4)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_logits_broadcast_over_leading_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    features, heads = torch.randn(3, 5, 4, generator=generator), torch.randn(3, 2, 4, generator=generator)
    expected = torch.stack([features[i] @ heads[i].T for i in range(3)])
    torch.testing.assert_close(logits(features, heads), expected)
    torch.testing.assert_close(logits(features[0], heads)[2], features[0] @ heads[2].T)
    torch.testing.assert_close(logits(features, heads[1])[0], features[0] @ heads[1].T)
