"""An attacker (one fine-tune), and the interface of attack families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sdm_ray.attack.space import Chance, Choice, Integer, LogFloat, Point, Space
from sdm_ray.config.attack import AttackSettings
from sdm_ray.core.types import Params
from sdm_ray.models.interface import TrunkLike

Phase = Literal["search", "rerun"]
Trains = Literal["full", "upper", "lora", "head", "probe"]
"""What an attacker trains by gradient descent: everything, the upper blocks, low-rank factors and the head, only the
head, or nothing (`probe`)."""


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """One fine-tune: hyper-parameters, and the values from which its seeds derive.

    All models are attacked by equal attackers, so that their results are paired.
    """

    family: str
    num_examples: int
    trains: Trains = "full"
    learning_rate: float = 0.0
    num_steps: int = 0
    batch_size: int = 1
    optimizer: str = "adam"
    schedule: str = "constant"
    depth: int = 0
    """For `upper`, the number of lowest blocks that are frozen, counting the embeddings; else 0."""
    rank: int = 0
    """For `lora`, the rank of the factors; else 0."""
    own_head: bool = False
    """Start from the released head instead of a randomly initialised one."""
    edit: str = ""
    """Edits of the weights before training, in order, joined by `+`; empty for none."""
    amount: float = 0.0
    """Strength of the edit; its unit depends on the family."""
    probe: str = ""
    """Name of the probe; empty for none."""
    layer: int = -1
    """Input of a probe: the pooled features (-1), or the mean over tokens of hidden state 0 (the embeddings) to L.
    `token_probe` reads single tokens of a hidden state, or raw rows of the token embedding (-2)."""
    phase: Phase = "search"
    repeat: int = 0
    """Index of the repetition of the search."""
    trial: int = 0
    """Index of the search point."""
    seed_index: int = 0
    """Index of the seed of subset, batch order and head, within the phase and repetition."""
    attempt: int = 0
    """1 for the retry of a failed fine-tune: same subset, another order and head."""
    # Seeds derive from `repr`. It leaves out the fields below, which were added later, so that seeds did not change.
    reading: str = field(default="", repr=False)
    """How `token_probe` computes one vector from a text's token states; else empty."""
    position: int = field(default=0, repr=False)
    """For the reading `position`, the token's index, 0 the first; for other readings see `families.token_probe`."""
    scaling: str = field(default="", repr=False)
    """How `token_probe` scales token states."""
    readout: str = field(default="", repr=False)
    """The classifier of `token_probe`."""
    pooling: str = field(default="", repr=False)
    """Pooling of a head that reads tokens (`families.token_heads`); empty for the model's own pooled features."""
    amounts: tuple[float, ...] = field(default=(), repr=False)
    """Strength of each edit; if empty, `amount` is used for all of them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "amounts", tuple(self.amounts))

    @property
    def edits(self) -> tuple[str, ...]:
        """The edits of the weights, in order."""
        return tuple(self.edit.split("+")) if self.edit else ()

    @property
    def frozen(self) -> bool:
        """Whether the trunk is frozen, so that its features can be cached."""
        return self.trains in ("head", "probe")


class Facts(NamedTuple):
    """Properties of a model and its data that decide which families apply."""

    num_depths: int
    """Number of depths of the parameters, including the embeddings and what follows the last layer."""
    num_hidden_states: int
    """Number of hidden states that a probe can read; 0 if they are not available."""
    has_linear_layers: bool
    """Whether there are linear layers for low-rank factors."""
    has_public: bool
    """Whether the public encoder from which the model was trained is available."""
    has_own_head: bool
    """Whether a head with the harmful task's classes was released."""
    can_redraw: bool
    """Whether random weights of the architecture can be drawn."""
    has_masked_lm: bool
    """Whether the public encoder's masked-LM head is available."""
    has_token_rows: bool = False
    """Whether there is a token embedding whose rows can be read."""
    knows_positions: bool = False
    """Whether the data give the token positions of names in the texts."""
    misses_directions: bool = False
    """Whether directions are missing from the residual stream that weights were trained to read."""


class Family(NamedTuple):
    """A kind of attack."""

    name: str
    words: str
    """Description of the attack, as a phrase."""
    space: Callable[[AttackSettings, int, Facts], Space]
    """Search space, given the number of examples n; may have no dimension."""
    attacker: Callable[[Point, int], Attacker]
    """The attacker at a point, given n."""
    missing: Callable[[Facts], str] = lambda facts: ""
    """What a model lacks for this family, as a phrase; empty if nothing is missing."""
    design: Callable[[AttackSettings, int, Facts], list[Point]] | None = None
    """Values for the search's points in order, which replace those of the sampler; None uses only the sampler. Such a
    family is cheap: it has its own number of points, and Sobol points for the remaining dimensions."""
    edit: Callable[[TrunkLike, Params, float, int], Params] | None = None
    """The family's own edit of the weights, see `OwnEdit`. Its attackers have the family's name in `edit`, and an
    `amount`."""


OwnEdit = Callable[[TrunkLike, Params, float, int], Params]
"""Edited weights, given the architecture, the weights, the amount, and a seed that depends on the amount."""
OWN_EDITS: dict[str, OwnEdit] = {}
"""Edits of the user's families, by family name."""


RATE_FACTORS = {
    "adam": 1.0, "adamw": 1.0, "rmsprop": 1.0, "momentum": 30.0, "adadelta": 1000.0, "adafactor": 10.0, "lion": 0.3,
}  # fmt: skip
"""Factor on the searched learning rate for each optimiser, so that one range fits all: momentum's steps are
proportional to gradients, Adadelta's and Adafactor's to earlier steps or to parameters, and Lion's have the size of the
learning rate in every element."""
HEAD_RATE_FACTOR = 10.0
"""Factor on the learning rate of a head on a frozen trunk."""
LORA_RATE_FACTOR = 10.0
"""Factor on the learning rate of low-rank factors (Hu et al., arXiv 2106.09685, use about ten times the rate of full
fine-tuning)."""


def paper_space(settings: AttackSettings, num_examples: int) -> Space:
    """The paper's search space: Adam's learning rate, steps, batch size, and whether only the head is trained."""
    return {
        "learning_rate": LogFloat(settings.learning_rate.low, settings.learning_rate.high),
        "num_steps": Integer(settings.num_steps_min, settings.num_steps_max),
        "batch_size": Choice(batch_sizes(settings, num_examples)),
        "frozen": Chance(settings.frozen_probability),
    }


def fine_tuning_space(settings: AttackSettings, num_examples: int) -> Space:
    """Search space common to gradient-based families: learning rate, steps, batch size, optimiser and schedule."""
    return {
        "learning_rate": LogFloat(settings.learning_rate.low, settings.learning_rate.high),
        "num_steps": Integer(settings.num_steps_min, settings.num_steps_max),
        "batch_size": Choice(batch_sizes(settings, num_examples)),
        "optimizer": Choice(settings.optimizers),
        "schedule": Choice(settings.schedules),
    }


def batch_sizes(settings: AttackSettings, num_examples: int) -> tuple[int, ...]:
    """The settings' batch sizes that are at most n; (n,) if there are none."""
    return tuple(size for size in settings.batch_sizes if size <= num_examples) or (num_examples,)


def fine_tuning(family: str, point: Point, num_examples: int, factor: float = 1.0, **changes: Any) -> Attacker:
    """The attacker at a point of `fine_tuning_space`, its learning rate multiplied by `factor`; `changes` are further
    fields."""
    return Attacker(
        family=family,
        num_examples=num_examples,
        learning_rate=point["learning_rate"] * RATE_FACTORS[point["optimizer"]] * factor,
        num_steps=point["num_steps"],
        batch_size=point["batch_size"],
        optimizer=point["optimizer"],
        schedule=point["schedule"],
        **changes,
    )
