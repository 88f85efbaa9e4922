"""An attacker (one fine-tune), and the interface of a family of attackers."""

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
"""What an attacker trains: everything, the upper blocks, low-rank factors and the head, the head alone, or nothing by
gradients."""


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """One fine-tune: hyper-parameters and what its seeds derive from. Equal for all models, which pairs them."""

    family: str
    num_examples: int
    trains: Trains = "full"
    learning_rate: float = 0.0
    num_steps: int = 0
    batch_size: int = 1
    optimizer: str = "adam"
    schedule: str = "constant"
    depth: int = 0
    """Blocks that `upper` freezes from below, the embeddings first; else 0."""
    rank: int = 0
    """Rank of low-rank factors; else 0."""
    own_head: bool = False
    """Start from the released head instead of a fresh one."""
    edit: str = ""
    """Edits of the weights before training, in order, joined by `+`; empty for none."""
    amount: float = 0.0
    """Strength of the edit; its unit depends on the family."""
    probe: str = ""
    """Which probe; empty for none."""
    layer: int = -1
    """What a probe reads: the pooled features (-1), or the mean over tokens of hidden state 0 (the embeddings) to L.
    `token_probe` reads tokens of a hidden state, or rows of the token embedding as they are (-2)."""
    phase: Phase = "search"
    repeat: int = 0
    """Which repetition of the search."""
    trial: int = 0
    """Number of the search point."""
    seed_index: int = 0
    """Chooses subset, order and head within the phase and repetition."""
    attempt: int = 0
    """1 for the retry of a failed fine-tune: same subset, another order and head."""
    # What follows is not in `repr`, from which seeds derive: those of attackers of before stay as they were.
    reading: str = field(default="", repr=False)
    """How `token_probe` makes one vector of a text's token states; else empty."""
    position: int = field(default=0, repr=False)
    """Which token a reading at a position reads, 0 the first; of other readings see `families.token_probe`."""
    scaling: str = field(default="", repr=False)
    """How `token_probe` rescales token states."""
    readout: str = field(default="", repr=False)
    """How `token_probe` tells classes from the vector."""
    pooling: str = field(default="", repr=False)
    """How a head that reads tokens sees them (`families.token_heads`); empty for the model's own pooled features."""
    amounts: tuple[float, ...] = field(default=(), repr=False)
    """Strength of each edit; where it is empty, `amount` holds for all of them."""

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
    """Facts about a model and its data that decide which families apply."""

    num_depths: int
    """Depths of its parameters, embeddings and what follows the last layer included."""
    num_hidden_states: int
    """Hidden states that a probe may read; 0 where they cannot be had."""
    has_linear_layers: bool
    """Whether low-rank factors find something to adapt."""
    has_public: bool
    """Whether the public encoder that it was made from is at hand."""
    has_own_head: bool
    """Whether a head with the harmful task's classes was released."""
    can_redraw: bool
    """Whether fresh weights of the architecture can be drawn."""
    has_masked_lm: bool
    """Whether the public encoder's masked-LM head is at hand."""
    has_token_rows: bool = False
    """Whether there is a token embedding whose rows can be read."""
    knows_positions: bool = False
    """Whether the data tell at which tokens a text names somebody."""
    misses_directions: bool = False
    """Whether directions are missing from the residual stream that weights were trained to read."""


class Family(NamedTuple):
    """A kind of attack."""

    name: str
    words: str
    """The attack, as a phrase."""
    space: Callable[[AttackSettings, int, Facts], Space]
    """Search space, given the number of examples n; may be empty of dimensions."""
    attacker: Callable[[Point, int], Attacker]
    """The attacker at a point, given n."""
    missing: Callable[[Facts], str] = lambda facts: ""
    """What a model lacks for it, in a phrase; empty where nothing is missing."""
    design: Callable[[AttackSettings, int, Facts], list[Point]] | None = None
    """Values that the points of a search take one after another, in place of the sampler's; None leaves all to it. A
    family that has one is cheap: it is searched by Sobol points and has a number of points of its own."""
    edit: Callable[[TrunkLike, Params, float, int], Params] | None = None
    """A change of the weights of its own, see `OwnEdit`; its attackers say `edit` with the name of the family, and an
    amount."""


OwnEdit = Callable[[TrunkLike, Params, float, int], Params]
"""Edited weights, given the architecture, the weights, the amount, and a seed that is the same for the same amount."""
OWN_EDITS: dict[str, OwnEdit] = {}
"""Edits that families of a user's own bring along, by the families' names."""


RATE_FACTORS = {
    "adam": 1.0, "adamw": 1.0, "rmsprop": 1.0, "momentum": 30.0, "adadelta": 1000.0, "adafactor": 10.0, "lion": 0.3,
}  # fmt: skip
"""By what each optimiser multiplies the searched learning rate, so that one range serves all: momentum's steps are
gradients, Adadelta's and Adafactor's are relative to parameters or to earlier steps, and Lion's are whole."""
HEAD_RATE_FACTOR = 10.0
"""A head on a frozen trunk trains at this multiple."""
LORA_RATE_FACTOR = 10.0
"""So do low-rank factors (Hu et al., arXiv 2106.09685, use about ten times the rate of full fine-tuning)."""


def paper_space(settings: AttackSettings, num_examples: int) -> Space:
    """What the paper searches: Adam's learning rate, steps and batch size, and the whole model or the head alone."""
    return {
        "learning_rate": LogFloat(settings.learning_rate.low, settings.learning_rate.high),
        "num_steps": Integer(settings.num_steps_min, settings.num_steps_max),
        "batch_size": Choice(batch_sizes(settings, num_examples)),
        "frozen": Chance(settings.frozen_probability),
    }


def fine_tuning_space(settings: AttackSettings, num_examples: int) -> Space:
    """Learning rate, steps, batch size, optimiser and schedule: what every family that descends gradients searches."""
    return {
        "learning_rate": LogFloat(settings.learning_rate.low, settings.learning_rate.high),
        "num_steps": Integer(settings.num_steps_min, settings.num_steps_max),
        "batch_size": Choice(batch_sizes(settings, num_examples)),
        "optimizer": Choice(settings.optimizers),
        "schedule": Choice(settings.schedules),
    }


def batch_sizes(settings: AttackSettings, num_examples: int) -> tuple[int, ...]:
    """The settings' batch sizes that n examples fill."""
    return tuple(size for size in settings.batch_sizes if size <= num_examples) or (num_examples,)


def fine_tuning(family: str, point: Point, num_examples: int, factor: float = 1.0, **changes: Any) -> Attacker:
    """An attacker at a point of `fine_tuning_space`, its learning rate multiplied."""
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
