"""One adversary: how it adapts the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdm_ray.config.adversary import HeadKind
from sdm_ray.config.starts import StartKind

Adaptation = Literal["full", "head", "partial", "lora"]
"""What an adversary trains: everything, the head alone, the upper blocks, or low-rank factors and the head."""


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """The settings of one adversary."""

    optimizer: str
    """`sgd`, `momentum`, `adam`, `adamw` or `rmsprop`."""
    batch_size: int
    """Examples in an inner batch."""
    num_steps: int
    """Inner steps; those of one turn for a persistent adversary."""
    learning_rate: float | None
    """None where it is meta-learned."""
    schedule: str
    """Schedule of the learning rate: `constant`, `warmup`, `linear` or `cosine`."""
    adaptation: Adaptation
    """What it trains."""
    depth: int
    """Blocks that `partial` freezes from below, the embeddings first; else 0."""
    rank: int
    """Rank of `lora`'s factors; else 0."""
    reset_head: bool
    """Whether it starts from a fresh head instead of the meta-learned one."""
    noise: float
    """Standard deviation of the parameter noise that it starts with, relative to each parameter's root mean square."""
    start: StartKind = "released"
    """The weights that it starts from: the current ones, or an edit of them."""
    start_amount: float = 0.0
    """Strength of the edit."""
    start_seed: int = 0
    """Seed of the edit's draws."""
    head_kind: HeadKind = "pooled"
    """What its head reads; a head that reads tokens is always fresh."""

    def describe(self) -> str:
        """One phrase for error messages."""
        rate = "meta-learned learning rate" if self.learning_rate is None else f"learning rate {self.learning_rate:.3g}"
        trained = {
            "full": "whole model",
            "head": "head only",
            "partial": f"lowest {self.depth} of the blocks frozen",
            "lora": f"LoRA of rank {self.rank}",
        }
        parts = [self.optimizer, rate, f"batch {self.batch_size}", trained[self.adaptation], f"{self.num_steps} steps"]
        if self.schedule != "constant":
            parts.append(f"{self.schedule} schedule")
        read = "" if self.head_kind == "pooled" else f"{self.head_kind} "
        parts.append(f"fresh {read}head" if self.reset_head else "meta-learned head")
        if self.noise:
            parts.append(f"noise {self.noise:.3g}")
        if self.start != "released":
            parts.append(f"{self.start.replace('_', ' ')} start of {self.start_amount:.3g}")
        return ", ".join(parts)

    def shape(self) -> tuple[str | int, ...]:
        """A key: adversaries with equal keys can run as one batch."""
        return (
            self.optimizer, self.batch_size, self.num_steps, self.schedule, self.adaptation, self.depth, self.rank,
            self.head_kind,
        )  # fmt: skip
