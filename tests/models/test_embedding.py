"""Restricting a token embedding to the rows that occur changes nothing, where it is allowed; depths of parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForSequenceClassification

from sdm_ray.models.embedding import depths_of, num_fixed_ids, token_embedding_name
from sdm_ray.models.trunk import Trunk
from tests.fakes import files as helpers
from tests.fakes.trunks import make_trunk, padded_tokens

KINDS = [*((kind, 0) for kind in helpers.MODEL_TYPES), ("roberta", 1), ("xlm-roberta", 3)]
"""Architectures and ids of their padding token."""
EMBEDDINGS = {
    "bert": "bert.embeddings.word_embeddings.weight",
    "distilbert": "distilbert.embeddings.word_embeddings.weight",
    "electra": "electra.embeddings.word_embeddings.weight",
    "modernbert": "model.embeddings.tok_embeddings.weight",
    "roberta": "roberta.embeddings.word_embeddings.weight",
    "xlm-roberta": "roberta.embeddings.word_embeddings.weight",
}


def weights_of(trunk: Trunk) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in trunk.named_parameters()}


@pytest.mark.parametrize(("kind", "padding"), KINDS)
@pytest.mark.parametrize("shortcut", [False, True])
def test_any_renumbering_that_leaves_the_fixed_ids_changes_nothing(kind: str, padding: int, shortcut: bool) -> None:
    trunk = make_trunk(kind, "cls", pad_token_id=padding)
    assert trunk.embedding_name is not None
    assert trunk.fixed_ids == (padding + 1 if "roberta" in kind else 0)
    ids, mask = padded_tokens(padding=padding)
    weights = weights_of(trunk)
    table = weights[trunk.embedding_name]
    fixed, free = torch.arange(trunk.fixed_ids), torch.arange(trunk.fixed_ids, len(table))
    order = torch.cat([fixed, free[torch.randperm(len(free), generator=torch.Generator().manual_seed(1))]])
    assert order[padding] != padding or trunk.fixed_ids
    renumbered = functional_call(
        trunk,
        weights | {trunk.embedding_name: table[order]},
        (order.argsort()[ids], mask),
        {"shortcut": shortcut},
    )
    assert torch.equal(renumbered, trunk(ids, mask, shortcut=shortcut))


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_fixed_ids_are_needed(kind: str) -> None:
    trunk = make_trunk(kind, "cls", pad_token_id=1)
    assert trunk.embedding_name is not None
    ids, mask = padded_tokens(padding=1)
    weights = weights_of(trunk)
    table = weights[trunk.embedding_name]
    order = torch.arange(len(table))
    order[[1, 7]] = order[[7, 1]]
    ids[:, 1] = 7
    exchanged = functional_call(trunk, weights | {trunk.embedding_name: table[order]}, (order[ids], mask))
    assert not torch.allclose(exchanged, trunk(ids, mask))


@pytest.mark.parametrize("pooling", ["native", "cls", "mean"])
@pytest.mark.parametrize(("kind", "padding"), KINDS)
def test_masked_positions_have_a_gradient_of_exactly_zero(kind: str, padding: int, pooling: Any) -> None:
    """So that it changes nothing that the padding token's row is not excepted from gradients."""
    trunk = make_trunk(kind, pooling, pad_token_id=padding)
    assert trunk.embedding_name is not None
    for options in [{}, {"shortcut": True}] if trunk.has_shortcut else [{}]:
        loss = trunk(*padded_tokens(padding=padding), **options).pow(3).sum()
        (gradient,) = torch.autograd.grad(loss, trunk.get_parameter(trunk.embedding_name))
        assert gradient.any(), "no gradient at all proves nothing"
        assert not gradient[padding].any()


@pytest.mark.parametrize("kind", helpers.MODEL_TYPES)
def test_a_restricted_embedding_withholds_no_gradient(kind: str) -> None:
    """The row that has the padding token's number in a restricted embedding belongs to another token."""
    trunk = make_trunk(kind)
    assert trunk.embedding_name == f"hf_model.{EMBEDDINGS[kind]}"
    weights = weights_of(trunk)
    rows = weights[trunk.embedding_name][20:30].clone().requires_grad_()
    ids = torch.arange(10).view(2, 5)
    features = functional_call(trunk, weights | {trunk.embedding_name: rows}, (ids, torch.ones_like(ids)))
    (gradient,) = torch.autograd.grad(features.pow(3).sum(), rows)
    assert gradient.any(dim=1).all()


@pytest.mark.parametrize("kind", helpers.MODEL_TYPES)
def test_exports_have_their_padding_index_and_dropout(kind: str, tmp_path: Path) -> None:
    trunk = make_trunk(kind)
    model = trunk.export_hf(weights_of(trunk), torch.ones(2, 16, dtype=torch.float64), ["a", "b"])
    plain = AutoModelForSequenceClassification.from_config(helpers.tiny_config(kind))
    assert model.get_input_embeddings().padding_idx == plain.get_input_embeddings().padding_idx == 0
    dropouts = [[m.p for m in each.modules() if isinstance(m, torch.nn.Dropout)] for each in (model, plain)]
    assert dropouts[0] == dropouts[1]
    model.save_pretrained(tmp_path)
    reread = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(reread.state_dict()[name], value), name


def test_embeddings_that_serve_elsewhere_or_are_of_unknown_architectures_are_not_restricted() -> None:
    assert make_trunk("camembert", "mean").embedding_name is None
    assert (
        make_trunk("roberta", "cls", vocab_size=100, pad_token_id=64, max_position_embeddings=99).embedding_name is None
    )
    assert num_fixed_ids(helpers.tiny_config("roberta", vocab_size=100, pad_token_id=63)) == 64
    assert num_fixed_ids(helpers.tiny_config("camembert")) is None
    trunk = make_trunk("bert", "mean")
    trunk.tied = torch.nn.Linear(16, len(helpers.VOCABULARY))
    trunk.tied.weight = trunk.hf_model.get_input_embeddings().weight
    assert token_embedding_name(trunk, trunk.hf_model) is None


@pytest.mark.parametrize("pooling", ["native", "cls"])
@pytest.mark.parametrize("kind", helpers.MODEL_TYPES)
def test_depths_follow_the_order_of_computation(kind: str, pooling: Any) -> None:
    """A layer's output depends on no parameter above its depth."""
    trunk = make_trunk(kind, pooling)
    names = [name for name, _ in trunk.named_parameters()]
    has_top = pooling == "native" or kind == "modernbert"
    assert trunk.num_depths == 3 + has_top
    assert {trunk.depth_of(name) for name in names} == set(range(trunk.num_depths))
    assert trunk.embedding_name is not None
    assert trunk.depth_of(trunk.embedding_name) == 0
    _, hidden = trunk(*padded_tokens(), hidden_states=True)
    for depth in range(2 if kind == "modernbert" else 3):
        found = torch.autograd.grad(
            hidden[depth].pow(3).sum(), list(trunk.parameters()), retain_graph=True, allow_unused=True
        )
        used = {
            trunk.depth_of(name) for name, value in zip(names, found, strict=True) if value is not None and value.any()
        }
        assert used == set(range(depth + 1))


def test_depths_are_told_by_name() -> None:
    names = ["head.w", "a.embeddings.w", "a.embed_project.w", "a.layer.0.w", "a.layers.10.w.0.b", "a.norm"]
    assert list(depths_of(names).values()) == [12, 0, 0, 1, 11, 12]
    assert list(depths_of(["a.embeddings.w", "a.groups.0.w", "b.w"]).values()) == [0, 0, 0]
