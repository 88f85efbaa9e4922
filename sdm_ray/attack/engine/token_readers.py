"""Readers of `token_probe`: fitting to an attacker's labelled texts, and scoring of other texts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sdm_ray.attack.engine.missing_readers import MissingReader, NameVectors
from sdm_ray.attack.engine.name_readings import NameReadings
from sdm_ray.attack.engine.plan import AttackTimeoutError
from sdm_ray.attack.engine.scoring import ScoringSet
from sdm_ray.attack.engine.token_cache import Passes
from sdm_ray.attack.engine.token_fits import forward, train_logistic, train_perceptrons, train_queries
from sdm_ray.attack.engine.token_states import Names, OfNames, Scaling, Tokens, known_of, read
from sdm_ray.attack.families.base import Attacker
from sdm_ray.attack.families.probes import ridge
from sdm_ray.attack.families.token_probe import OF_NAMES
from sdm_ray.core.seeds import seeded
from sdm_ray.core.types import Params, Task
from sdm_ray.models.interface import TrunkLike

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset

KEPT_BYTES = 1024**3
"""Most memory for the states of one subset's texts; if they need more, layers are processed in parts."""
STACKED_BYTES = 256 * 1024**2
"""Most memory for the scaled states of queries that are trained together."""
SAME = 1e-7
"""Standard deviation (relative to that of all tokens) below which a feature counts as constant over texts."""
KERNEL_EXAMPLES = 3000
"""Most examples for a kernel regression."""

Score = Callable[[Tensor], Tensor]
"""Function from features (N, F) float64 to scores (N, C)."""
Place = tuple[int, str]
"""Layer and scaling."""


@dataclass(frozen=True)
class Reader:
    """A fitted reader of an attacker."""

    attacker: Attacker
    scaling: Scaling | OfNames
    query: Tensor | None
    score: Score

    def __call__(self, tokens: Tokens) -> Tensor:
        """(N, C) scores of texts."""
        attacker = self.attacker
        return self.score(read(tokens, attacker.layer, attacker.reading, attacker.position, self.scaling, self.query))


class TokenReaders:
    """Fits readers of one model's token states, and scores texts with them.

    Args:
        trunk: the architecture, a transformers encoder of texts.
        params: its weights.
        data: the texts.
        task: the task whose labels are learned.
        seed: seed of all draws.
    """

    def __init__(self, trunk: TrunkLike, params: Params, data: AttackDataset, task: Task, seed: int) -> None:
        self._trunk, self._params, self._data, self._task, self._seed = trunk, params, data, task, seed
        self._device = next(iter(params.values())).device
        self._labels, self._num_classes = data.labels_host(task), data.num_classes(task)
        self._passes = Passes(trunk, params)
        self._names = NameReadings(trunk, params, data, task, seed, self._passes)
        self._vectors_kept: dict[bytes, NameVectors] = {}

    def fit(
        self, attackers: Sequence[Attacker], subsets: Sequence[Tensor], deadline: float | None = None
    ) -> list[Reader]:
        """Fit the readers of attackers.

        Args:
            attackers: attackers of the family `token_probe`.
            subsets: (n,) labelled examples of each attacker, on the host.
            deadline: time limit, as a value of `time.perf_counter`; None for no limit.

        Raises:
            AttackTimeoutError: after the deadline.
        """
        readers: dict[int, Reader] = {}
        groups: dict[bytes, list[int]] = defaultdict(list)
        for index, subset in enumerate(subsets):
            groups[subset.sort().values.numpy().tobytes()].append(index)
        for members in groups.values():
            examples = ScoringSet.of(self._data, subsets[members[0]], self._task)
            for layers in self._parts(examples, {attackers[index].layer for index in members}):
                chosen = [index for index in members if attackers[index].layer in layers]
                tokens = self._gather(examples, layers)
                fitting = _Fitting(tokens, examples.labels, self._num_classes, self._seed, deadline, self._names.of)
                found = fitting.readers([attackers[index] for index in chosen])
                readers |= dict(zip(chosen, found, strict=True))
        return [readers[index] for index in range(len(attackers))]

    def scores(self, readers: Sequence[Reader], examples: ScoringSet) -> Tensor:
        """(S, N, C) scores on the host, in the order of `examples`."""
        layers = {reader.attacker.layer for reader in readers}
        batches = self._passes.tokens(examples, layers, self._known(examples.indices))
        return torch.cat([torch.stack([reader(tokens) for reader in readers]).cpu() for tokens in batches], dim=1)

    @property
    def misses_directions(self) -> bool:
        """Whether directions are missing from the stream that weights read."""
        return bool(self._names.maps_of_missing())

    def chosen_scores(
        self, attackers: Sequence[Attacker], subsets: Sequence[Tensor], examples: Sequence[ScoringSet]
    ) -> list[Tensor]:
        """Scores of readers of missing directions, which validation chooses.

        Args:
            attackers: S that read `missing`.
            subsets: (n,) examples of each.
            examples: attacker-validation, and other texts.

        Returns:
            (S, N, C) on the host for each set of texts.
        """
        vectors, found = [self._vectors(texts) for texts in examples], []
        labels = examples[0].labels.to(self._device)
        for attacker, subset in zip(attackers, subsets, strict=True):
            owned = ScoringSet.of(self._data, subset, self._task)
            own_labels = owned.labels.to(self._device)
            reader = MissingReader(self._vectors(owned), own_labels, self._num_classes, attacker.amount)
            found.append(reader.scores(vectors[0], labels, *vectors[1:]))
        return [torch.stack(scores).cpu() for scores in zip(*found, strict=True)]

    def _vectors(self, examples: ScoringSet) -> NameVectors:
        """What missing directions tell of the names in texts."""
        key = examples.indices.numpy().tobytes()
        if key not in self._vectors_kept:
            readings = self._names.missing()
            parts: dict[int, list[Names]] = {layer: [] for layer in readings.layers}
            for tokens in self._passes.tokens(examples, readings.layers, self._known(examples.indices)):
                for layer, names in parts.items():
                    names.append(Names.of(tokens, layer))
            self._vectors_kept[key] = readings.vectors({layer: Names.joined(names) for layer, names in parts.items()})
        return self._vectors_kept[key]

    def _known(self, indices: Tensor) -> Tensor | None:
        return known_of(self._data, indices, self._device)

    def _parts(self, examples: ScoringSet, layers: set[int]) -> Iterable[set[int]]:
        """Split the layers into parts whose states fit into memory."""
        longest = int(examples.batches[-1].attention_mask.shape[-1])
        name = self._trunk.embedding_name
        width = self._trunk.feature_dim if name is None else self._params[name].shape[-1]
        fitting = max(1, KEPT_BYTES // (4 * len(examples) * longest * width))
        ordered = sorted(layers)
        return [set(ordered[start : start + fitting]) for start in range(0, len(ordered), fitting)]

    def _gather(self, examples: ScoringSet, layers: set[int]) -> Tokens:
        """Token states of all examples, padded to the longest text."""
        longest = int(examples.batches[-1].attention_mask.shape[-1])
        batches = list(self._passes.tokens(examples, layers, None))

        def joined(parts: list[Tensor]) -> Tensor:
            return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])

        states = {layer: joined([part.states[layer] for part in batches]) for layer in layers}
        mask = joined([part.mask[..., None] for part in batches])[..., 0]
        ids = joined([part.ids[..., None] for part in batches if part.ids is not None])[..., 0]
        return Tokens(states, mask, self._known(examples.indices), ids)


class _Fitting:
    """Fits readers to the tokens of one subset of texts."""

    def __init__(
        self,
        tokens: Tokens,
        labels: Tensor,
        num_classes: int,
        seed: int,
        deadline: float | None,
        named: Callable[[Attacker], OfNames],
    ) -> None:
        self._named = named
        self._tokens, self._num_classes, self._deadline = tokens, num_classes, deadline
        self._labels = labels.to(tokens.mask.device)
        self._generator = seeded(seed, "token readers", len(labels))
        self._scalings: dict[Place, Scaling] = {}

    def readers(self, attackers: Sequence[Attacker]) -> list[Reader]:
        """In the order of the attackers."""
        queries = self._queries(sorted({_place(a) for a in attackers if a.reading == "query"}))
        for place in {_place(attacker) for attacker in attackers}:
            self._scaling(place)
        features, scalings = [], []
        for a in attackers:
            query = queries.get(_place(a)) if a.reading == "query" else None
            scaling = self._named(a) if a.reading in OF_NAMES else self._scaling(_place(a))
            scalings.append(scaling)
            features.append(read(self._tokens, a.layer, a.reading, a.position, scaling, query))
        scores = self._read_outs(attackers, features)
        return [
            Reader(a, scaling, queries.get(_place(a)) if a.reading == "query" else None, score)
            for a, scaling, score in zip(attackers, scalings, scores, strict=True)
        ]

    def _check(self) -> None:
        if self._deadline is not None and time.perf_counter() > self._deadline:
            raise AttackTimeoutError("timed out")

    def _scaling(self, place: Place) -> Scaling:
        if place not in self._scalings:
            layer, kind = place
            self._scalings[place] = Scaling.of(kind, self._tokens.states[layer], self._tokens.mask)
        return self._scalings[place]

    def _queries(self, places: Sequence[Place]) -> dict[Place, Tensor]:
        """Learned queries by layer and scaling."""
        found: dict[Place, Tensor] = {}
        count = max(1, STACKED_BYTES // max(1, 4 * self._tokens.mask.numel() * self._width()))
        for start in range(0, len(places), count):
            part = places[start : start + count]
            scaled = [self._scaling(place)(self._tokens.states[place[0]]).float() for place in part]
            width = max(values.shape[-1] for values in scaled)
            stacked = torch.stack([F.pad(values, (0, width - values.shape[-1])) for values in scaled])
            queries = train_queries(
                stacked, self._tokens.mask, self._labels, self._num_classes, self._generator, self._check
            )
            for place, values, query in zip(part, scaled, queries, strict=True):
                found[place] = query[: values.shape[-1]]
        return found

    def _width(self) -> int:
        return max(values.shape[-1] for values in self._tokens.states.values())

    def _read_outs(self, attackers: Sequence[Attacker], features: Sequence[Tensor]) -> list[Score]:
        """Fit each attacker's readout to its features."""
        scores: dict[int, Score] = {}
        stacks: dict[str, list[int]] = defaultdict(list)
        for index, attacker in enumerate(attackers):
            self._check()
            if attacker.reading in OF_NAMES:  # not standardised: the scale of these features is meaningful
                scores[index] = ridge(features[index], self._labels, self._num_classes, attacker.amount)
            elif attacker.readout in TRAINED:
                stacks[attacker.readout].append(index)
            else:
                own = _own(features[index])
                fitted = CLOSED[attacker.readout](own, self._labels, self._num_classes, attacker.amount)
                scores[index] = _scaled(features[index], fitted)
        for readout, members in stacks.items():
            each = [_own(features[index]).float() for index in members]
            width = max(values.shape[1] for values in each)
            stacked = torch.stack([F.pad(values, (0, width - values.shape[1])) for values in each])
            penalties = torch.tensor([attackers[index].amount for index in members]).to(stacked)
            params = TRAINED[readout](stacked, self._labels, self._num_classes, penalties, self._generator, self._check)
            for place, index in enumerate(members):
                mine = {name: value[place : place + 1] for name, value in params.items()}
                scores[index] = _scaled(features[index], _network(mine, width))
        return [scores[index] for index in range(len(attackers))]


def kernel_ridge(features: Tensor, labels: Tensor, num_classes: int, penalty: float) -> Score:
    """Kernel ridge regression with a Gaussian kernel of bandwidth sqrt(F); arguments as in `ridge`."""
    owned, labels = features[:KERNEL_EXAMPLES], labels[:KERNEL_EXAMPLES]
    targets = F.one_hot(labels, num_classes).double()
    mean, (count, width) = targets.mean(0), owned.shape

    def kernel(values: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(values, owned).square() / (2 * max(width, 1)))

    gram = kernel(owned) + penalty * max(1.0, count / max(width, 1)) * torch.eye(count).to(owned)
    weights = torch.linalg.solve(gram, targets - mean)
    return lambda values: kernel(values) @ weights + mean


CLOSED = {"ridge": ridge, "kernel": kernel_ridge}
TRAINED = {"logistic": train_logistic, "perceptron": train_perceptrons}


def _place(attacker: Attacker) -> Place:
    return attacker.layer, attacker.scaling


def _scaled(owned: Tensor, fitted: Score) -> Score:
    """Apply `fitted` to features that are standardised with the statistics of the attacker's own (n, F)."""
    mean, scale = owned.mean(0), _scale(owned)
    return lambda values: fitted((values - mean) * scale)


def _own(features: Tensor) -> Tensor:
    """Standardised features (n, F)."""
    return (features - features.mean(0)) * _scale(features)


def _scale(owned: Tensor) -> Tensor:
    """(F,) factors that scale the attacker's own features (n, F) to standard deviation 1; 0 for constant features."""
    deviation = owned.std(0, correction=0)
    return torch.where(deviation > SAME, 1 / deviation.clamp_min(SAME), 0.0)


def _network(params: Params, width: int) -> Score:
    def score(values: Tensor) -> Tensor:
        padded = F.pad(values.float(), (0, width - values.shape[1]))
        return forward(params, padded[None])[0].double()

    return score
