"""Families that fine-tune the unedited released weights: everything, the head, the upper blocks, low-rank factors."""

from __future__ import annotations

from sdm_ray.attack.families.base import (
    HEAD_RATE_FACTOR,
    LORA_RATE_FACTOR,
    Attacker,
    Facts,
    Family,
    fine_tuning,
    fine_tuning_space,
    paper_space,
)
from sdm_ray.attack.space import Chance, Choice, Integer, Point, Space
from sdm_ray.config.attack import AttackSettings


def _paper_space(settings: AttackSettings, num_examples: int, facts: Facts) -> Space:
    return paper_space(settings, num_examples)


def _paper(point: Point, num_examples: int) -> Attacker:
    return Attacker(
        family="fine_tune",
        num_examples=num_examples,
        learning_rate=point["learning_rate"] * (HEAD_RATE_FACTOR if point["frozen"] else 1.0),
        num_steps=point["num_steps"],
        batch_size=point["batch_size"],
        trains="head" if point["frozen"] else "full",
    )


def _own_head(space: Space, facts: Facts) -> Space:
    return space | {"own_head": Chance(0.5)} if facts.has_own_head else space


def _full_space(settings: AttackSettings, num_examples: int, facts: Facts) -> Space:
    return _own_head(fine_tuning_space(settings, num_examples), facts)


def _full(point: Point, num_examples: int) -> Attacker:
    return fine_tuning("full", point, num_examples, own_head=point.get("own_head", False))


def _head(point: Point, num_examples: int) -> Attacker:
    own = point.get("own_head", False)
    return fine_tuning("head", point, num_examples, HEAD_RATE_FACTOR, trains="head", own_head=own)


def _partial_space(settings: AttackSettings, num_examples: int, facts: Facts) -> Space:
    return fine_tuning_space(settings, num_examples) | {"depth": Integer(1, facts.num_depths - 1)}


def _partial(point: Point, num_examples: int) -> Attacker:
    return fine_tuning("partial", point, num_examples, trains="upper", depth=point["depth"])


def _lora_space(settings: AttackSettings, num_examples: int, facts: Facts) -> Space:
    return fine_tuning_space(settings, num_examples) | {"rank": Choice(settings.lora_ranks)}


def _lora(point: Point, num_examples: int) -> Attacker:
    return fine_tuning("lora", point, num_examples, LORA_RATE_FACTOR, trains="lora", rank=point["rank"])


FINE_TUNE = Family("fine_tune", "Adam, the whole model or the head alone", _paper_space, _paper)
FULL = Family("full", "full fine-tuning by any optimiser and schedule", _full_space, _full)
HEAD = Family("head", "the head alone on a frozen trunk", _full_space, _head)
PARTIAL = Family(
    "partial",
    "full fine-tuning above a depth, the blocks below frozen",
    _partial_space,
    _partial,
    lambda facts: "" if facts.num_depths > 1 else "a trunk of more than one block",
)
LORA = Family(
    "lora",
    "low-rank factors of every linear layer (LoRA)",
    _lora_space,
    _lora,
    lambda facts: "" if facts.has_linear_layers else "linear layers of a transformers model",
)
