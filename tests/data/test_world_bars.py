"""The bars of version 2 of the synthetic world, written down before any method runs: what to find, what to keep.

Three encoders that differ in the seed of their pretraining meet them; the first one is shipped. An hour of one core;
`python -m tests.benchmarks.world` measures one encoder in ten minutes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdm_ray.config import SyntheticWorld
from sdm_ray.data.synthetic import fingerprint
from sdm_ray.models.builtin import builtin_folder
from sdm_ray.models.pretrain import RECORD_FILE, SHIPPED_FOLDERS, pretraining_record
from sdm_ray.models.pretrain_settings import default_settings
from tests.benchmarks.world import Figures, figures

WORLD = SyntheticWorld(version=2)
MIN_HARMFUL_HEAD_START = 0.25
"""Public encoder minus scratch, at every number of labels."""
MAX_SCRATCH_HARMFUL = 0.58
MIN_DESIRED = 0.92
"""Accuracy of the tuned encoder on trades."""
MIN_DESIRED_GAIN = 0.15
"""Tuned minus scratch."""
MIN_BENIGN_HEAD_START = 0.20
"""Public minus scratch, and tuned minus scratch, mean over numbers of labels, each benign task."""
MAX_EMBEDDING_SHARE = 0.75
"""Of the harmful head start, for readers of the token embedding alone, at every number of labels."""


def failures(public: Figures, tuned: Figures, scratch: Figures) -> list[str]:
    """The bars that are not met."""
    missed = []

    def check(holds: bool, text: str) -> None:
        if not holds:
            missed.append(text)

    for found, embedding, none in zip(public.harmful, public.embedding, scratch.harmful, strict=True):
        check(found - none >= MIN_HARMFUL_HEAD_START, f"harmful head start {found:.3f} - {none:.3f}")
        check(none <= MAX_SCRATCH_HARMFUL, f"harmful from scratch {none:.3f}")
        share = (embedding - none) / (found - none)
        check(share <= MAX_EMBEDDING_SHARE, f"readers of the embedding find {share:.2f} of the head start")
    assert tuned.desired is not None
    assert scratch.desired is not None
    check(tuned.desired >= MIN_DESIRED, f"desired, tuned {tuned.desired:.3f}")
    check(tuned.desired - scratch.desired >= MIN_DESIRED_GAIN, f"desired, scratch {scratch.desired:.3f}")
    for column, low in scratch.benign.items():
        for name, model in (("public", public), ("tuned", tuned)):
            start = (sum(model.benign[column]) - sum(low)) / len(low)
            check(start >= MIN_BENIGN_HEAD_START, f"{column}, {name}: head start {start:.3f}")
    return missed


def test_the_bars_notice_what_misses_them() -> None:
    benign = {"origin": [0.9, 0.9, 0.9]}
    good = Figures(0.95, [1.0] * 4, [0.8] * 4, benign)
    scratch = Figures(0.6, [0.5] * 4, [0.5] * 4, {"origin": [0.3, 0.3, 0.3]})
    assert not failures(good, good, scratch)
    assert failures(good._replace(embedding=[0.8, 0.8, 0.8, 0.9]), good, scratch) == [
        "readers of the embedding find 0.80 of the head start"
    ]
    assert failures(good, good._replace(desired=0.9), scratch) == ["desired, tuned 0.900"]
    assert failures(good, good, scratch._replace(desired=0.81)) == ["desired, scratch 0.810"]
    assert failures(good, good._replace(benign={"origin": [0.5, 0.5, 0.4]}), scratch) == [
        "origin, tuned: head start 0.167"
    ]
    known = failures(good, good, scratch._replace(harmful=[0.5, 0.5, 0.5, 0.6]))
    assert known == ["harmful from scratch 0.600"]
    assert len(failures(good._replace(harmful=[0.7, 1.0, 1.0, 1.0]), good, scratch)) == 2


def test_shipped_encoder_is_the_one_that_the_code_would_build() -> None:
    record = json.loads((SHIPPED_FOLDERS[2] / RECORD_FILE).read_text())
    assert record.pop("final_loss") < 1.45
    rebuild = "the generator or the pretraining changed: run `python -m sdm_ray.models.pretrain --version 2`"
    assert record == pretraining_record(WORLD, default_settings(WORLD)), rebuild


def test_version_2_is_frozen() -> None:
    # A different value means a different world: every published figure would be about another one. Make version 3.
    assert fingerprint(WORLD) == "a58c33c4781d73b4"


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_there_is_something_to_find_and_something_to_keep(seed: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    settings = default_settings(WORLD).model_copy(update={"seed": seed})
    measured = figures(builtin_folder(WORLD, cache_dir=tmp_path, settings=settings), WORLD)
    assert not failures(measured["public"], measured["tuned"], measured["scratch"])
