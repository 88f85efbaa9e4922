"""Attackers that leave the trunk frozen: heads on cached features, probes, and readers of single tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdm_ray.attack.engine.plan import Plan
from sdm_ray.attack.engine.readings import Readings
from sdm_ray.attack.engine.stack import Curves, train_heads
from sdm_ray.attack.engine.target import AttackTarget
from sdm_ray.attack.engine.token_readers import TokenReaders
from sdm_ray.attack.families import token_probe
from sdm_ray.attack.families.base import Attacker
from sdm_ray.attack.families.edits import Editor
from sdm_ray.attack.families.probes import PROBES, standardised
from sdm_ray.core.types import Params, Split


class FrozenTrunk:
    """Classifiers on top of frozen weights, released or edited.

    Args:
        target: the attacked model.
        editor: computes its edited weights.
    """

    def __init__(self, target: AttackTarget, editor: Editor) -> None:
        self._target, self._editor = target, editor
        self._released = self._read(target.params)
        self._read_edited: tuple[object, Readings] = ((), self._released)
        self._token_readers: tuple[object, TokenReaders] | None = None
        """Token readers for the weights of the last edit."""

    def readings(self, attacker: Attacker) -> Readings:
        """Features for an attacker with a frozen trunk; those of the last edit are cached."""
        if not attacker.edit:
            return self._released
        key = self._editor.key(attacker)
        if self._read_edited[0] != key:
            self._read_edited = key, self._read(self._editor.edited(attacker))
        return self._read_edited[1]

    def train_heads(self, plan: Plan) -> tuple[Tensor, Curves]:
        """(S, C, D) heads that attackers train on cached features, and their curves."""
        needed = torch.from_numpy(np.unique(torch.cat(plan.subsets).numpy()))
        labels = self._target.data.labels_host(self._target.task)[needed].to(self._target.device)
        readings = self.readings(plan.attackers[0])
        features, val_features = readings.owned.pooled(needed), readings.pooled(Split.ATTACKER_VAL)
        return train_heads(features, labels, plan, _positions(needed, plan.subsets), val_features)

    def probe(self, plan: Plan, splits: Sequence[Split]) -> dict[Split, Tensor]:
        """(S, N, C) scores of every split by classifiers that train no weight of the model."""
        if plan.attackers[0].probe == token_probe.NAME:
            return self._read_tokens(plan, splits)
        target, readings = self._target, self.readings(plan.attackers[0])
        labels_host = target.data.labels_host(target.task)
        scored: dict[Split, list[Tensor]] = {split: [] for split in splits}
        for attacker, subset in zip(plan.attackers, plan.subsets, strict=True):
            pooled = attacker.layer < 0
            mine = readings.owned.pooled(subset) if pooled else readings.owned.hidden(attacker.layer, subset)
            owned, *others = standardised(mine, tuple(readings.read(split, attacker.layer) for split in splits))
            labels = labels_host[subset].to(owned.device)
            classify = PROBES[attacker.probe](owned, labels, target.num_classes, attacker.amount)
            for split, values in zip(splits, others, strict=True):
                scored[split].append(classify(values).to(target.dtype).cpu())
        return {split: torch.stack(values) for split, values in scored.items()}

    def token_readers(self, attacker: Attacker) -> TokenReaders:
        """Token readers for an attacker's edited weights; those of the last edit are cached."""
        key = self._editor.key(attacker) if attacker.edit else ("",)
        if self._token_readers is None or self._token_readers[0] != key:
            target, params = self._target, self._editor.edited(attacker)
            reading = TokenReaders(target.trunk, params, target.data, target.task, target.settings.seed)
            self._token_readers = key, reading
        return self._token_readers[1]

    def _read_tokens(self, plan: Plan, splits: Sequence[Split]) -> dict[Split, Tensor]:
        """(S, N, C) scores of every split by readers of single tokens."""
        target, reading = self._target, self.token_readers(plan.attackers[0])
        texts = [target.scored(split) for split in splits]
        selects = [attacker.reading == token_probe.MISSING for attacker in plan.attackers]
        found = {
            split: torch.zeros(len(selects), len(examples), target.num_classes)
            for split, examples in zip(splits, texts, strict=True)
        }
        for by_validation in sorted(set(selects)):
            rows = [row for row, one in enumerate(selects) if one == by_validation]
            attackers, subsets = [plan.attackers[row] for row in rows], [plan.subsets[row] for row in rows]
            if by_validation:
                assert splits[0] is Split.ATTACKER_VAL, splits
                scored = reading.chosen_scores(attackers, subsets, texts)
            else:
                readers = reading.fit(attackers, subsets, plan.deadline)
                scored = [reading.scores(readers, examples) for examples in texts]
            for split, scores in zip(splits, scored, strict=True):
                found[split][rows] = scores.to(found[split])
        return {split: scores.to(target.dtype) for split, scores in found.items()}

    def _read(self, params: Params) -> Readings:
        target = self._target
        scored = {Split.ATTACKER_VAL: target.val, Split.TEST: target.test}
        return Readings(target.trunk, params, target.data, target.pool, target.task, scored)


def _positions(indices: Tensor, subsets: Sequence[Tensor]) -> list[Tensor]:
    """Positions in `indices` of the examples of each subset."""
    row = torch.empty(int(indices.max()) + 1, dtype=torch.long)
    row[indices] = torch.arange(len(indices))
    return [row[subset] for subset in subsets]
