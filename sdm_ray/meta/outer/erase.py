"""Finds the directions of the residual stream that tell the harmful label, by readers of single tokens.

A reader attends to a text's tokens by a learned query and tells the classes from what it attends to. One is trained at
every site, on labels of meta-training alone; what its classes' means differ in, at the site where it does best on names
that it was not fitted to, is taken out (`models/erasure.py`), and the next direction is looked for in what is left. The
means, not the reader's weights: those leave what goes along with them (compare iterated null-space projection, arXiv
2004.07667, and concept scrubbing, arXiv 2306.03819).

What no linear reader sees stays: pieces whose combination tells are read by others.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from sdm_ray.config import EraseSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.flops import FlopCounter
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.seeds import seeded
from sdm_ray.core.types import Params, Task
from sdm_ray.data.interface import KnowsPositions, labelled
from sdm_ray.models.erasure import Direction, Erasure
from sdm_ray.models.reads import stream_readers
from sdm_ray.models.stream import Stream, stream_of

if TYPE_CHECKING:
    from sdm_ray.data.interface import TrainingDataset
    from sdm_ray.models.trunk import Trunk

READER_STEPS, READER_RATE, READER_BATCH = 150, 0.02, 256
READER_STD, READER_DECAY, READER_SCALE = 0.01, 1e-3, 4.0
"""Of a reader: deviation of its first weights, weight decay, and what its scores are multiplied by."""
HELD_SHARE = 0.25
"""Share of names that no reader is fitted to."""
RIDGE = 1e-3
"""Of the mean variance, that a covariance has at least in every direction."""
NOTHING = 1e-9
"""Difference of means, relative to the states' deviation, that is none."""
FORWARD_BATCH = 256


class Removed(NamedTuple):
    """A direction that was taken out."""

    state: int
    """Hidden state where it was found."""
    accuracies: tuple[float, ...]
    """Balanced accuracy of the reader of each site, on held-out names, before this direction was taken."""


@dataclass(frozen=True, kw_only=True)
class FoundErasure:
    """An erasure and how it was found."""

    erasure: Erasure
    removed: tuple[Removed, ...]
    seconds: float
    """That finding it took."""
    costs: dict[str, float] = field(default_factory=dict)
    """Texts that were read and FLOPs of the encoder's passes over them, as metrics; those of readers are not counted.
    Empty for one that was found before they were counted."""


class Texts(NamedTuple):
    """Labelled texts with the states of their tokens."""

    states: Tensor
    """(N, L, D)."""
    mask: Tensor
    """(N, L) bool; True on tokens."""
    labels: Tensor
    """(N,) class indices."""


class Reader(NamedTuple):
    """A query and a linear read-out of what it attends to."""

    query: Tensor
    """(D,)."""
    weight: Tensor
    """(D, C)."""
    bias: Tensor
    """(C,)."""
    centre: Tensor
    scale: Tensor
    """(D,) mean and deviation of tokens."""

    def attended(self, texts: Texts, states: Tensor | None = None) -> Tensor:
        """(N, D) means of states under the weights that the query gives; by default the standardised states."""
        standardised = (texts.states - self.centre) / self.scale
        scores = (standardised @ self.query).masked_fill(~texts.mask, -1e4)
        read = standardised if states is None else states
        return torch.einsum("nl,nld->nd", scores.softmax(1), read)

    def scores(self, texts: Texts) -> Tensor:
        """(N, C)."""
        return READER_SCALE * (self.attended(texts) @ self.weight) + self.bias


def check_erasure(settings: EraseSettings, trunk: Trunk) -> Stream:
    """Where the encoder writes to its stream, if what is asked can be done to it.

    Raises:
        UsageError: for an encoder whose stream is not known, or sites that it does not have.
    """
    stream = stream_of(trunk)
    beyond = [site for site in settings.sites if site >= stream.num_states]
    if beyond:
        raise UsageError(
            f"train.erase.sites names hidden state {beyond[0]}, but the encoder has 0 to {stream.num_states - 1}; "
            "leave it out"
        )
    spared, width = settings.spare_desired + settings.spare_general, trunk.feature_dim
    if spared + settings.num_directions >= width:
        raise UsageError(
            f"train.erase: {settings.num_directions} directions and {spared} that are spared leave nothing of the "
            f"encoder's {width} dimensions; lower one of them"
        )
    return stream


def find_erasure(
    settings: EraseSettings, *, trunk: Trunk, data: TrainingDataset, indices: Tensor, seed: int
) -> Generator[Progress, None, FoundErasure]:
    """Find directions on the encoder as it stands, yielding after each.

    Fewer than asked are found where readers' classes no longer differ.

    Args:
        settings: how many and how.
        trunk: the public encoder; it is not written to.
        data: texts and labels on the device.
        indices: (N,) host indices that may be read, of meta-training.
        seed: of the sample of texts and of readers.

    Raises:
        UsageError: as `check_erasure`; and for too few labelled texts, or more directions than the stream can spare.
    """
    started = time.perf_counter()
    stream = check_erasure(settings, trunk)
    everywhere = stream.pre_norm if settings.reach == "auto" else settings.reach == "everywhere"
    sample = _Sample(settings, data, indices, seed)
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    acting = stream_readers(trunk) if settings.reads else ()
    sites = tuple(dict.fromkeys(settings.sites)) or tuple(range(stream.num_states))
    spreads: list[Tensor] = []
    metrics: dict[int, Tensor] = {}
    num_texts, counter = 0, FlopCounter()
    directions: list[Direction] = []
    removed: list[Removed] = []
    erasure = Erasure.of(stream, directions, params, everywhere=everywhere)
    for turn in range(settings.num_directions):
        with counter:
            states = sample.states(trunk, erasure.applied(params))
        num_texts += len(sample.mask)
        if not spreads:
            spreads = [covariance(state[sample.mask]) for state in states]
            metrics = _by_site(stream, spreads, everywhere) if settings.estimator == "leace" else {}
        readers = {site: _fit(sample.texts(states[site], fitted=True), seed, turn, site) for site in sites}
        told = {site: _balanced(readers[site], sample.texts(states[site], fitted=False)) for site in sites}
        state = max(told, key=told.__getitem__)
        metric = metrics.get(stream.of_state(state))
        fitted = sample.texts(states[state], fitted=True)
        spared = sample.spared(settings, states[state], spreads[state])
        covector = _covector(readers[state].attended(fitted, fitted.states), fitted.labels, metric, spared)
        if covector is None:
            break
        directions.append(Direction(state, covector))
        removed.append(Removed(state, tuple(told.values())))
        erasure = Erasure.of(stream, directions, params, everywhere=everywhere, metrics=metrics, readers=acting)
        yield Progress("erase", turn + 1, settings.num_directions, {})
    costs = {str(Metric.COST_TRAIN_TEXTS): float(num_texts), str(Metric.COST_TRAIN_FLOPS): counter.total}
    seconds = time.perf_counter() - started
    return FoundErasure(erasure=erasure, removed=tuple(removed), seconds=seconds, costs=costs)


class _Sample:
    """Texts of meta-training, some of whose names are held out."""

    def __init__(self, settings: EraseSettings, data: TrainingDataset, indices: Tensor, seed: int) -> None:
        owned = labelled(data, indices, Task.HARMFUL)
        generator = seeded(seed, "erase")
        chosen = owned[torch.randperm(len(owned), generator=generator)[: settings.num_texts].sort().values]
        (self._ids, mask), self._labels = data.batch(chosen, Task.HARMFUL)
        self.mask = mask.bool()
        self._desired = data.labels_host(Task.DESIRED)[chosen].to(self._ids.device)
        names = self._names(data, chosen)
        kinds = torch.unique(names)
        held = kinds[torch.randperm(len(kinds), generator=generator)[: round(HELD_SHARE * len(kinds))]]
        is_held = torch.isin(names, held)
        self._parts = {fitted: (is_held != fitted).nonzero()[:, 0].to(self._ids.device) for fitted in (True, False)}
        if any(len(torch.unique(self._labels[part])) < 2 for part in self._parts.values()):
            raise UsageError(
                f"train.erase: {len(chosen)} texts with {len(kinds)} names do not give two classes to fit readers to "
                "and two to choose among them; raise train.erase.num_texts or give more data"
            )

    def _names(self, data: TrainingDataset, chosen: Tensor) -> Tensor:
        """(N,) on the host, equal for texts about one name; all different where no name is known."""
        known, texts = (
            data.known_positions_host() if isinstance(data, KnowsPositions) else None,
            torch.arange(len(chosen)),
        )
        if known is None:
            return texts
        places, ids = known[chosen, 0], self._ids.cpu()
        return torch.where(places < 0, int(ids.max()) + 1 + texts, ids[texts, places.clamp_min(0)])

    @torch.no_grad()
    def states(self, trunk: Trunk, params: Params) -> Tensor:
        """(H, N, L, D) hidden states under some weights."""
        cut = [torch.split(value, FORWARD_BATCH) for value in (self._ids, self.mask.long())]
        parts = zip(*cut, strict=True)
        found = [functional_call(trunk, params, inputs, {"hidden_states": True})[1] for inputs in parts]
        return torch.cat(found, dim=1)

    def texts(self, states: Tensor, *, fitted: bool) -> Texts:
        """Those that readers are fitted to, or the others, with their states at a site (N, L, D)."""
        part = self._parts[fitted]
        return Texts(states[part], self.mask[part], self._labels[part])

    def spared(self, settings: EraseSettings, states: Tensor, spread: Tensor) -> Tensor | None:
        """(K, D) orthonormal directions of a site that are left; None for none."""
        parts = []
        if settings.spare_general:
            parts.append(torch.linalg.eigh(spread).eigenvectors[:, -settings.spare_general :].T)
        if settings.spare_desired:
            labelled_texts = self._desired >= 0
            mask = self.mask[labelled_texts, :, None]
            pooled = (states[labelled_texts] * mask).sum(1) / mask.sum(1)
            means = between(pooled, self._desired[labelled_texts])
            axes = torch.linalg.svd(means, full_matrices=False).Vh
            parts.append(axes[: min(settings.spare_desired, len(means) - 1)])
        return torch.linalg.qr(torch.cat(parts).T).Q.T if parts else None


def between(values: Tensor, labels: Tensor) -> Tensor:
    """(C, D) float64 classes' means of (N, D) less the mean of all, each times the root of its share."""
    values = values.double()
    classes = torch.unique(labels)
    shares = torch.stack([(labels == label).double().mean() for label in classes])
    means = torch.stack([values[labels == label].mean(0) for label in classes])
    return shares.sqrt()[:, None] * (means - values.mean(0))


def covariance(tokens: Tensor) -> Tensor:
    """(D, D) float64 covariance of tokens (N, D), with a little of the identity."""
    centred = tokens.double() - tokens.double().mean(0)
    found = centred.T @ centred / len(centred)
    return found + RIDGE * found.diagonal().mean() * torch.eye(len(found), dtype=found.dtype, device=found.device)


def _covector(values: Tensor, labels: Tensor, metric: Tensor | None, spared: Tensor | None) -> Tensor | None:
    """The unit covector (D,) whose erasure along a metric takes most of what class means of (N, D) differ in; None
    where they do not."""
    means = between(values, labels)
    if spared is not None:
        means = means - (means @ spared.T) @ spared
    if means.norm() <= NOTHING * values.double().std(0).norm():
        return None
    if metric is None:
        covector: Tensor = torch.linalg.svd(means, full_matrices=False).Vh[0]
        return covector
    sizes, axes = torch.linalg.eigh(metric)
    root = (axes * sizes.rsqrt()) @ axes.T
    covector = root @ torch.linalg.svd(means @ root, full_matrices=False).Vh[0]
    covector /= covector.norm()
    return covector


def _by_site(stream: Stream, spreads: list[Tensor], everywhere: bool) -> dict[int, Tensor]:
    """Covariances by site: of the hidden state there, or the mean over all that share a stream without norms."""
    own = {stream.of_state(state): spread for state, spread in enumerate(spreads)}
    if not (everywhere and stream.pre_norm):
        return own
    inside = [metric for index, metric in own.items() if not stream.sites[index].only_read]
    shared = torch.stack(inside).mean(0)
    return {index: own[index] if site.only_read else shared for index, site in enumerate(stream.sites)}


def _fit(texts: Texts, seed: int, turn: int, site: int) -> Reader:
    """A reader of texts, by Adam."""
    generator = seeded(seed, "erase", turn, site)
    tokens = texts.states[texts.mask]
    centre, scale = tokens.mean(0), tokens.std(0) + 1e-6
    classes, width = int(texts.labels.max()) + 1, tokens.shape[1]
    query = (torch.randn(width, generator=generator) * READER_STD).to(tokens).requires_grad_()
    weight = (torch.randn(width, classes, generator=generator) * READER_STD).to(tokens).requires_grad_()
    bias = tokens.new_zeros(classes).requires_grad_()
    reader = Reader(query, weight, bias, centre, scale)
    optimizer = torch.optim.Adam([query, weight, bias], lr=READER_RATE)
    for _ in range(READER_STEPS):
        rows = torch.randint(len(texts.labels), (READER_BATCH,), generator=generator).to(tokens.device)
        batch = Texts(texts.states[rows], texts.mask[rows], texts.labels[rows])
        decay = weight.square().sum() + query.square().sum()
        loss = cross_entropy(reader.scores(batch), batch.labels) + READER_DECAY * decay
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Reader(query.detach(), weight.detach(), bias.detach(), centre, scale)


@torch.no_grad()
def _balanced(reader: Reader, texts: Texts) -> float:
    """Balanced accuracy of a reader."""
    right, labels = reader.scores(texts).argmax(1) == texts.labels, texts.labels
    return float(torch.stack([right[labels == label].double().mean() for label in torch.unique(labels)]).mean())


__all__ = ["FoundErasure", "Removed", "check_erasure", "find_erasure"]
