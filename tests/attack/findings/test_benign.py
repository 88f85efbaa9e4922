"""Benign trainability: the grouping of classes, and the same search on it."""

from __future__ import annotations

import torch

from sdm_ray.attack.findings.benign import GroupedData
from sdm_ray.attack.protocol import attack_model
from sdm_ray.core.types import Split, Task
from tests.fakes.attack_world import CUE, FakeData, TinyTrunk, drain, params_of, quick


def test_groups_hold_about_as_many_classes_and_label_every_example() -> None:
    data = FakeData(num_classes=7)
    grouped = GroupedData(data, 3)
    sizes = [len(name.split(" / ")) for name in grouped.label_names(Task.DESIRED)]
    assert sorted(sizes) == [2, 2, 3]
    names = [f"{Task.DESIRED}-{label}" for label in range(7)]
    labels = grouped.labels_host(Task.DESIRED)
    for label, group in zip(data.labels[Task.DESIRED].tolist(), labels.tolist(), strict=True):
        assert names[label] in grouped.label_names(Task.DESIRED)[group].split(" / ")
    indices = data.indices(Split.ATTACKER_TRAIN)[:6].view(2, 3)
    assert torch.equal(grouped.batch(indices, Task.DESIRED).labels, labels[indices])
    again = GroupedData(FakeData(num_classes=7, seed=5), 3)
    assert again.label_names(Task.DESIRED) == grouped.label_names(Task.DESIRED), "one grouping for every model"
    assert grouped.digest != data.digest


def test_an_unseen_grouping_is_learnt_by_the_same_search() -> None:
    data = FakeData(num_classes=4)
    data.ids[:, 1] = CUE + data.labels[Task.DESIRED]
    trunk = TinyTrunk()
    settings = quick(num_examples=(100,), class_balanced=False, num_steps_max=80)
    grouped = GroupedData(data, 2)
    report = drain(attack_model(trunk, params_of(trunk), grouped, settings, task=Task.DESIRED))
    assert report.num_classes == 2
    assert report.cells[0].accuracy > 0.8
