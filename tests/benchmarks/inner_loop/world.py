"""The model and the texts of `tests.benchmarks.inner_loop`: BERT-Tiny with random weights on random tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdm_ray.core.types import Batch
from sdm_ray.data.device import DeviceData
from sdm_ray.data.tokenized import TokenizedData, round_up
from sdm_ray.models.trunk import Trunk

CLASSES = 2
WORD_QUANTILES = (12, 24, 33, 41, 49, 57, 66, 76, 88, 104, 150)
"""Words of real biographies at 0, 10, ..., 100 %: median 57, 95 % below 119."""
TOKENS_A_WORD = 1.25
REAL_LONGEST = 128
"""Tokens that real biographies are cut at."""
NUM_EXAMPLES = 4000
"""Texts of a world for persistent adversaries."""


class Shape(NamedTuple):
    """Sizes of a model and of its batches."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    inner: int
    """Texts of an inner batch."""
    outer: int
    """Texts of the outer batch."""
    fixed: int
    """Tokens of a text where all are alike."""
    longest: int
    """Tokens that a text is cut at otherwise."""


BERT_TINY = Shape(30_522, 128, 2, 2, 512, 16, 20, 64, REAL_LONGEST)
QUICK = Shape(600, 16, 2, 2, 32, 4, 6, 8, 16)


class Texts(NamedTuple):
    """Unpadded texts: leading dimensions are any."""

    ids: np.ndarray
    """(..., longest) token ids; those past a text's length are meaningless."""
    lengths: np.ndarray
    """(...)."""
    labels: np.ndarray
    """(...)."""


class World:
    """One episode's model and batches; the same seed gives the same texts however they are padded.

    Args:
        num_steps: K.
        lengths: `fixed` or `real`.
        padding: to the `longest` of a batch, to the next multiple of `eights`, or to the `full` length of data.
        device: where it lives.
        shape: its sizes.
    """

    def __init__(self, num_steps: int, lengths: str, padding: str, device: torch.device, shape: Shape) -> None:
        self.num_steps, self.device, self.shape = num_steps, device, shape
        self._lengths, self._padding = lengths, padding
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # transformers draws weights from the global generator
            self.trunk = Trunk(_classifier(shape), "native").to(device)
            self.head: Tensor = (torch.randn(CLASSES, shape.hidden) * 0.02).to(device)
        self.inner = self.inner_batches(1)
        self.outer = self.pad(self.texts(shape.outer, seed=0))

    def inner_batches(self, num_adversaries: int) -> list[Batch]:
        """K inner batches (A, B, L), each as wide as its own texts."""
        drawn = [self.texts(num_adversaries, self.shape.inner, seed=step + 1) for step in range(self.num_steps)]
        return [self.pad(texts) for texts in drawn]

    def inner_batches_of_each(self, num_adversaries: int) -> list[list[Batch]]:
        """The same texts, those of every adversary by themselves: A times K batches (1, B, L)."""
        drawn = [self.texts(num_adversaries, self.shape.inner, seed=step + 1) for step in range(self.num_steps)]
        return [
            [self.pad(Texts(*(part[index : index + 1] for part in texts))) for texts in drawn]
            for index in range(num_adversaries)
        ]

    def texts(self, *lead: int, seed: int) -> Texts:
        """Random tokens (Zipf) and labels, 64 tokens each or as many as biographies have."""
        generator, shape = np.random.default_rng(seed), self.shape
        counts = np.full(lead, shape.fixed)
        if self._lengths == "real":
            words = np.interp(generator.random(lead), np.linspace(0, 1, len(WORD_QUANTILES)), WORD_QUANTILES)
            tokens = np.minimum(np.ceil(words * TOKENS_A_WORD) + 2, REAL_LONGEST)
            counts = np.ceil(tokens * shape.longest / REAL_LONGEST).astype(np.int64)
        ids = generator.zipf(1.2, size=(*lead, shape.longest)) % (shape.vocabulary - 5) + 5
        return Texts(ids, counts, generator.integers(0, CLASSES, lead))

    def pad(self, texts: Texts) -> Batch:
        """Texts as a batch on the device."""
        longest = int(texts.lengths.max())
        width = {"longest": longest, "eights": round_up(longest), "full": self.shape.longest}[self._padding]
        mask = np.arange(width) < texts.lengths[..., None]
        ids = texts.ids[..., :width] * mask
        inputs = (torch.from_numpy(ids).to(self.device), torch.from_numpy(mask.astype(np.int64)).to(self.device))
        return Batch(inputs, torch.from_numpy(texts.labels).to(self.device))

    def device_data(self) -> DeviceData:
        """Many such texts, as training holds them."""
        texts = self.texts(NUM_EXAMPLES, seed=0)
        mask = np.arange(self.shape.longest) < texts.lengths[:, None]
        tokenized = TokenizedData(
            input_ids=(texts.ids * mask).astype(np.int32),
            lengths=texts.lengths,
            desired=texts.labels,
            harmful=texts.labels,
            split=np.zeros(NUM_EXAMPLES, dtype=np.int8),
            desired_labels=("0", "1"),
            harmful_labels=("0", "1"),
            pad_id=0,
            digest="random",
        )
        return DeviceData(tokenized, self.device)


def _classifier(shape: Shape) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        "bert", vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=shape.intermediate, num_labels=CLASSES,
    )  # fmt: skip
    model: torch.nn.Module = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    return model
