"""Finds the directions of the residual stream that tell the harmful label, by readers of single tokens.

A reader attends to a text's tokens by a learned query and tells the classes from what it attends to. One is trained at
every site, on labels of meta-training alone; what its classes' means differ in, at the site where it does best on names
that it was not fitted to, is taken out (`models/erasure.py`), and the next direction is looked for in what is left. The
means, not the reader's weights: those leave what goes along with them (compare iterated null-space projection, arXiv
2004.07667, and concept scrubbing, arXiv 2306.03819).

Labels that depend on the combination of a name's two tokens escape linear readers; `products.py` finds pairs of
directions for them, which are removed first.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.func import functional_call

from sdm_ray.config import EraseSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.flops import FlopCounter
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.seeds import seeded
from sdm_ray.core.types import Params, Task
from sdm_ray.data.interface import known_positions, labelled
from sdm_ray.meta.outer.linear_readers import Texts, balanced, between, fit_reader, mean_covector
from sdm_ray.meta.outer.products import MARGIN, TwoTokens, find_product
from sdm_ray.models.erasure import Direction, Erasure
from sdm_ray.models.reads import stream_readers
from sdm_ray.models.stream import Stream, stream_of

if TYPE_CHECKING:
    from sdm_ray.data.interface import TrainingDataset
    from sdm_ray.models.trunk import Trunk

HELD_SHARE = 0.25
"""Share of names that no reader is fitted to."""
RIDGE = 1e-3
"""Of the mean variance, that a covariance has at least in every direction."""
FORWARD_BATCH = 256


class Removed(NamedTuple):
    """A direction that was taken out."""

    state: int
    """Hidden state where it was found."""
    accuracies: tuple[float, ...]
    """Balanced accuracy of the reader of each site, on held-out names, before this direction was taken."""
    kind: str = "mean"
    """`mean` for one direction, found by a linear reader; `product` for a pair of directions."""


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


def check_erasure(settings: EraseSettings, trunk: Trunk, data: TrainingDataset | None = None) -> Stream:
    """Where the encoder writes to its stream, if what is asked can be done to it.

    Raises:
        UsageError: for an encoder whose stream is not known, sites that it does not have, or products on data without
            known positions of names.
    """
    stream = stream_of(trunk)
    beyond = [site for site in settings.sites if site >= stream.num_states]
    if beyond:
        raise UsageError(
            f"train.erase.sites names hidden state {beyond[0]}, but the encoder has 0 to {stream.num_states - 1}; "
            "leave it out"
        )
    spared, width = settings.spare_desired + settings.spare_general, trunk.feature_dim
    asked = settings.num_directions + 2 * settings.num_products
    if spared + asked >= width:
        raise UsageError(
            f"train.erase: {asked} directions and {spared} that are spared leave nothing of the "
            f"encoder's {width} dimensions; lower one of them"
        )
    if settings.num_products and data is not None and known_positions(data) is None:
        raise UsageError(
            f"train.erase.num_products is {settings.num_products}, but the positions of names are not known in these "
            "texts; set it to 0"
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
    stream = check_erasure(settings, trunk, data)
    everywhere = stream.pre_norm if settings.reach == "auto" else settings.reach == "everywhere"
    sample = _Sample(settings, data, indices, seed)
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    acting = stream_readers(trunk) if settings.reads else ()
    search = _Search(settings, sample, stream, seed, everywhere=everywhere)
    num_texts, counter = 0, FlopCounter()
    directions: list[Direction] = []
    removed: list[Removed] = []
    erasure = Erasure.of(stream, directions, params, everywhere=everywhere)
    total = settings.num_products + settings.num_directions
    for turn in range(total):
        for_product = turn < settings.num_products
        if for_product and search.no_more_products:
            continue
        with counter:
            states = sample.states(trunk, erasure.applied(params))
        num_texts += len(sample.mask)
        found = search.best_product(states) if for_product else search.best_mean(states)
        if found is None and not for_product:
            break
        if found is not None:
            directions += found.directions
            removed.append(found.removed)
            erasure = Erasure.of(
                stream, directions, params, everywhere=everywhere, metrics=search.metrics, readers=acting
            )
        yield Progress("erase", turn + 1, total, {})
    costs = {str(Metric.COST_TRAIN_TEXTS): float(num_texts), str(Metric.COST_TRAIN_FLOPS): counter.total}
    seconds = time.perf_counter() - started
    return FoundErasure(erasure=erasure, removed=tuple(removed), seconds=seconds, costs=costs)


class _Found(NamedTuple):
    directions: tuple[Direction, ...]
    removed: Removed


class _Limits(TypedDict):
    metric: Tensor | None
    """(D, D) covariance that differences are measured relative to."""
    spared: Tensor | None
    """(K, D) directions that are left out."""


class _Search:
    """Selects what to remove next, among all sites."""

    def __init__(
        self, settings: EraseSettings, sample: _Sample, stream: Stream, seed: int, *, everywhere: bool
    ) -> None:
        self._settings, self._sample, self._stream, self._seed = settings, sample, stream, seed
        self._sites = tuple(dict.fromkeys(settings.sites)) or tuple(range(stream.num_states))
        self._two = sample.two_tokens(seeded(seed, "erase", "products")) if settings.num_products else None
        self._everywhere, self._num_means = everywhere, 0
        self._spreads: list[Tensor] = []
        self.metrics: dict[int, Tensor] = {}
        """Covariances of the states before any removal, by site of the stream; empty for `estimator: means`."""
        self.no_more_products = False
        """Whether products did not predict the label of held-out names at the last search."""

    def best_mean(self, states: Tensor) -> _Found | None:
        """The direction in which classes' means differ, at the site whose reader does best; None if they are equal.

        Args:
            states: (H, N, L, D) states of the sample's tokens.
        """
        sample, turn = self._sample, self._num_means
        self._num_means += 1
        readers = {
            site: fit_reader(sample.texts(states[site], fitted=True), self._seed, turn, site) for site in self._sites
        }
        told = {site: balanced(reader, sample.texts(states[site], fitted=False)) for site, reader in readers.items()}
        state = max(told, key=told.__getitem__)
        fitted = sample.texts(states[state], fitted=True)
        attended = readers[state].attended(fitted, fitted.states)
        covector = mean_covector(attended, fitted.labels, **self._limits(states, state))
        if covector is None:
            return None
        return _Found((Direction(state, covector),), Removed(state, tuple(told.values())))

    def best_product(self, states: Tensor) -> _Found | None:
        """The pair of directions whose product differs between classes, at the site where products predict best.

        Args:
            states: (H, N, L, D) states of the sample's tokens.

        Returns:
            None if they predict no better than chance.
        """
        assert self._two is not None
        found = {site: find_product(self._two, states[site], **self._limits(states, site)) for site in self._sites}
        state = max(found, key=lambda site: found[site].accuracy)
        best = found[state]
        if best.accuracy <= 1 / len(torch.unique(self._two.labels)) + MARGIN:
            self.no_more_products = True
            return None
        told = tuple(product.accuracy for product in found.values())
        return _Found((Direction(state, best.first), Direction(state, best.second)), Removed(state, told, "product"))

    def _limits(self, states: Tensor, state: int) -> _Limits:
        if not self._spreads:
            self._spreads = [covariance(one[self._sample.mask]) for one in states]
            if self._settings.estimator == "leace":
                self.metrics = _by_site(self._stream, self._spreads, self._everywhere)
        spared = self._sample.spared(self._settings, states[state], self._spreads[state])
        return {"metric": self.metrics.get(self._stream.of_state(state)), "spared": spared}


class _Sample:
    """Texts of meta-training, some of whose names are held out."""

    def __init__(self, settings: EraseSettings, data: TrainingDataset, indices: Tensor, seed: int) -> None:
        owned = labelled(data, indices, Task.HARMFUL)
        generator = seeded(seed, "erase")
        chosen = owned[torch.randperm(len(owned), generator=generator)[: settings.num_texts].sort().values]
        (self._ids, mask), self._labels = data.batch(chosen, Task.HARMFUL)
        self.mask = mask.bool()
        self._desired = data.labels_host(Task.DESIRED)[chosen].to(self._ids.device)
        self._known = known_positions(data)
        if self._known is not None:
            self._known = self._known[chosen]
        names = self._names()
        kinds = torch.unique(names)
        held = kinds[torch.randperm(len(kinds), generator=generator)[: round(HELD_SHARE * len(kinds))]]
        is_held = torch.isin(names, held)
        self._parts = {fitted: (is_held != fitted).nonzero()[:, 0].to(self._ids.device) for fitted in (True, False)}
        if any(len(torch.unique(self._labels[part])) < 2 for part in self._parts.values()):
            raise UsageError(
                f"train.erase: {len(chosen)} texts with {len(kinds)} names do not give two classes to fit readers to "
                "and two to choose among them; raise train.erase.num_texts or give more data"
            )

    def _names(self) -> Tensor:
        """(N,) on the host, equal for texts about one name; all different where no name is known."""
        texts, known = torch.arange(len(self._ids)), self._known
        if known is None:
            return texts
        places, ids = known[:, 0], self._ids.cpu()
        return torch.where(places < 0, int(ids.max()) + 1 + texts, ids[texts, places.clamp_min(0)])

    def two_tokens(self, generator: torch.Generator) -> TwoTokens:
        """The texts with two-token names; the generator draws the names to which no reader is fitted.

        Raises:
            UsageError: if there are too few.
        """
        return TwoTokens.of(self._known, self._ids, self._labels, generator)

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


def covariance(tokens: Tensor) -> Tensor:
    """(D, D) float64 covariance of tokens (N, D), with a little of the identity."""
    centred = tokens.double() - tokens.double().mean(0)
    found = centred.T @ centred / len(centred)
    return found + RIDGE * found.diagonal().mean() * torch.eye(len(found), dtype=found.dtype, device=found.device)


def _by_site(stream: Stream, spreads: list[Tensor], everywhere: bool) -> dict[int, Tensor]:
    """Covariances by site: of the hidden state there, or the mean over all that share a stream without norms."""
    own = {stream.of_state(state): spread for state, spread in enumerate(spreads)}
    if not (everywhere and stream.pre_norm):
        return own
    inside = [metric for index, metric in own.items() if not stream.sites[index].only_read]
    shared = torch.stack(inside).mean(0)
    return {index: own[index] if site.only_read else shared for index, site in enumerate(stream.sites)}


__all__ = ["FoundErasure", "Removed", "check_erasure", "find_erasure"]
