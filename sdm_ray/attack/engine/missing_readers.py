"""Reads names through the response of reading weights to missing directions (`engine.missing`).

There are many such readings, each one number per name: principal components of all names under one matrix, which need
no labels, and ridge regressions on the attacker's examples. Attacker-validation selects among them, separately for
one-token and two-token names (`engine.chosen`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdm_ray.attack.engine.chosen import choose_apart
from sdm_ray.attack.engine.interaction import NameStates
from sdm_ray.attack.engine.scoring import EXAMPLES_PER_BATCH
from sdm_ray.attack.engine.token_states import Names, Scaling, components
from sdm_ray.attack.families.probes import ridge

COMPONENTS = 6
"""Principal components of one-token names used as single readings, for each matrix and hidden state."""
FEATURES = 16
"""Principal components used in one ridge regression."""
PENALTIES = (0.01, 0.05)
"""Penalties of ridge regressions on vectors of root mean square length 1."""


@dataclass(frozen=True)
class NameVectors:
    """Vectors of the names of N texts, under several matrices."""

    alone: Tensor
    """(V, N, F) components of one-token names, for each matrix and hidden state; zero for other names."""
    together: Tensor
    """(W, N, G) joint effect of both tokens of two-token names; zero for other names."""
    two: Tensor
    """(N,) bool; whether a name has two tokens."""
    names: Tensor
    """(N,) int64, equal for texts about one name."""


class MissingReadings:
    """Computes vectors of names, fitted to the names of attacker-train.

    Args:
        maps: (E, R) each, of `engine.missing.maps_of_missing`.
        names: by hidden state, of attacker-train; the states at which names of one token are read.
        states: of names of two tokens; None where they make no table.
    """

    def __init__(self, maps: Sequence[Tensor], names: dict[int, Names], states: NameStates | None) -> None:
        self._maps, self._states = maps, states
        self._scalings: dict[tuple[int, int], Scaling] = {}
        for layer, found in names.items():
            # Without a table names of two are read as if they were of one.
            told = found.first if states is None else found.first[~found.second_known]
            for place, to_missing in enumerate(maps):
                found_axes = components(told.double() @ to_missing, FEATURES, white=False)
                self._scalings[layer, place] = Scaling(found_axes.mean, found_axes.matrix.flip(1))  # the widest first
        self._factors = None if states is None else [_factors(states.table, to_missing) for to_missing in maps]

    @property
    def layers(self) -> tuple[int, ...]:
        """Hidden states at which one-token names are read."""
        return tuple(sorted({layer for layer, _ in self._scalings}))

    def vectors(self, names: dict[int, Names]) -> NameVectors:
        """Vectors of names, given by hidden state."""
        first = names[self.layers[0]]
        two = first.second_known if self._states is not None else torch.zeros_like(first.second_known)
        alone = [
            _padded(scaling(names[layer].first.double() @ self._maps[place]) * ~two[:, None])
            for (layer, place), scaling in self._scalings.items()
        ]
        assert first.pieces is not None
        pieces = first.pieces.clone()
        pieces[~first.second_known, 1] = -1
        _, ids = torch.unique(pieces, dim=0, return_inverse=True)
        return NameVectors(torch.stack(alone), self._together(pieces, two), two, ids)

    def _together(self, pieces: Tensor, two: Tensor) -> Tensor:
        """(W, N, G) for token ids (N, 2), of which those of `two` are read."""
        if self._states is None or self._factors is None:
            return pieces.new_zeros(0, len(pieces), 0, dtype=torch.float64)
        pairs = [(a, b) for a, b in pieces[two].tolist()]
        parts = [pairs[start : start + EXAMPLES_PER_BATCH] for start in range(0, len(pairs), EXAMPLES_PER_BATCH)]
        told = torch.cat([self._told(part) for part in parts or [[]]], dim=1)
        together = told.new_zeros(len(told), len(pieces), told.shape[2])
        together[:, two] = told
        return together

    def _told(self, pairs: Sequence[tuple[int, int]]) -> Tensor:
        """(W, M, G): the last hidden state under each matrix, and all that have met under each."""
        assert self._states is not None
        assert self._factors is not None
        found, states = [], self._states.of(pairs)[:, 1:]
        for to_missing, factors in zip(self._maps, self._factors, strict=True):
            told = (states @ to_missing) * factors
            last = torch.zeros_like(told)
            last[:, -1] = told[:, -1]
            found += [_unit(last, factors[-1:]), _unit(told, factors)]
        return torch.stack(found)


def _factors(table: Tensor, to_missing: Tensor) -> Tensor:
    """(H - 1, P, 1) that give a table's interactions (·, H, P, E), mapped, length 1 in the mean; 0 for none."""
    told = table[:, 1:] @ to_missing
    size, largest = told.square().sum(3, keepdim=True).mean(0).sqrt(), told.abs().max().clamp_min(1e-300)
    return torch.where(size > 1e-6 * largest, 1 / size.clamp_min(1e-300), 0.0)


def _unit(told: Tensor, factors: Tensor) -> Tensor:
    return told.flatten(1) / (factors > 0).sum().clamp_min(1).sqrt()


def _padded(values: Tensor) -> Tensor:
    """(N, FEATURES) of (N, ·)."""
    return torch.nn.functional.pad(values, (0, FEATURES - values.shape[1]))


class MissingReader:
    """A reader of names, fitted to one attacker's examples; attacker-validation selects its readings.

    Args:
        owned: the examples.
        labels: (n,).
        num_classes: C.
        penalty: what the penalties of ridge regressions are multiplied by.
    """

    def __init__(self, owned: NameVectors, labels: Tensor, num_classes: int, penalty: float) -> None:
        self._num_classes = num_classes
        self._fitted = {}
        for two, vectors in ((False, owned.alone), (True, owned.together)):
            mine = owned.two == two
            self._fitted[two] = [
                ridge(features[mine], labels[mine], num_classes, penalty * share)
                for features in vectors
                for share in PENALTIES
                if bool(mine.any()) and features.shape[1]
            ]

    def scores(self, chosen_on: NameVectors, labels: Tensor, *others: NameVectors) -> list[Tensor]:
        """(N, C) scores of attacker-validation, with its labels, and of other texts.

        Those of validation are said of each text by readings that were chosen on other names.
        """
        sets = (chosen_on, *others)
        found = [vectors.alone.new_zeros(len(vectors.two), self._num_classes) for vectors in sets]
        for two in (False, True):
            mine = [vectors.two == two for vectors in sets]
            first, *rest = (self._readings(vectors, rows, two=two) for vectors, rows in zip(sets, mine, strict=True))
            if not len(first):
                continue
            vote, own = choose_apart(first, labels[mine[0]], self._num_classes, chosen_on.names[mine[0]])
            for scores, rows, said in zip(found, mine, (own, *map(vote, rest)), strict=True):
                scores[rows] = said
        return found

    def _readings(self, vectors: NameVectors, rows: Tensor, *, two: bool) -> Tensor:
        """(M, N') readings of the texts of a kind."""
        features = (vectors.together if two else vectors.alone)[:, rows]
        found = []
        if not two:
            found.append(features[:, :, :COMPONENTS].movedim(2, 1).flatten(0, 1))
        fitted = self._fitted[two]
        each = [values for values in features for _ in PENALTIES] if fitted else []
        for score, values in zip(fitted, each, strict=True):
            scores = score(values)
            # Of two classes the one score says what the other does.
            found.append((scores[:, 1:] - scores[:, :1] if self._num_classes == 2 else scores).T)
        return torch.cat(found) if found else features.new_zeros(0, features.shape[1])
