"""Seeds and CPU generators derived from names, so that draws of one kind never shift those of another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


class Generators:
    """Independent CPU generators by name.

    Args:
        seed: seed of the run.
        names: purposes of the generators.
    """

    def __init__(self, seed: int, names: Iterable[str]) -> None:
        self._generators = {name: torch.Generator().manual_seed(generator_seed(seed, name)) for name in names}

    def __getitem__(self, name: str) -> torch.Generator:
        return self._generators[name]

    def state_dict(self) -> dict[str, Tensor]:
        """State of every generator, as uint8 tensors."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from `state_dict`; a generator that an older state lacks is unchanged."""
        for name, generator in self._generators.items():
            if name in state:
                generator.set_state(state[name])


def generator_seed(seed: int, name: str) -> int:
    """63-bit seed of the generator `name` in a run with this seed (see `Generators`)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def derived_seed(*parts: object) -> int:
    """63-bit seed that depends only on the parts (not on process, platform or call order)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded(*parts: object) -> torch.Generator:
    """CPU generator seeded with `derived_seed(*parts)`."""
    return torch.Generator().manual_seed(derived_seed(*parts))
