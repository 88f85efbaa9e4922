"""Seeds and CPU generators derived from names, so that a draw of one kind never shifts the draws of another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


class Generators:
    """Independent CPU generators by name.

    Args:
        seed: of the run.
        names: what the generators are for.
    """

    def __init__(self, seed: int, names: Iterable[str]) -> None:
        self._generators = {name: torch.Generator().manual_seed(generator_seed(seed, name)) for name in names}

    def __getitem__(self, name: str) -> torch.Generator:
        return self._generators[name]

    def state_dict(self) -> dict[str, Tensor]:
        """State of every generator, as uint8 tensors."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken; a generator that an older state lacks stays as it is."""
        for name, generator in self._generators.items():
            if name in state:
                generator.set_state(state[name])


def generator_seed(seed: int, name: str) -> int:
    """The 63-bit seed of the generator called `name` in a run with this seed (see `Generators`)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def derived_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else (no process, platform or call order)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded(*parts: object) -> torch.Generator:
    """A CPU generator seeded with `derived_seed(*parts)`."""
    return torch.Generator().manual_seed(derived_seed(*parts))
