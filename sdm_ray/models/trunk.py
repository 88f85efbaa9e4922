"""The trunk: any Hugging Face encoder as a pure function from tokens to one feature vector per text.

It supports `torch.func.functional_call`, `vmap` over stacked parameters and double backward. transformers branches on
the contents of a 2-D attention mask, which `vmap` cannot trace, but passes a 4-D mask through. Therefore the additive
4-D mask is built here, arithmetically, and attention uses the eager implementation, which is twice differentiable.

By default `forward` is bit-identical to transformers. Some training options depart from that: a shortcut with the same
features up to rounding (`lean.py`), and dropout with masks drawn from a seed.

In float64 the architectures keep double precision, except for ModernBERT: transformers computes its rotary embedding
and softmax in float32 for any dtype of the weights.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Params
from sdm_ray.models.embedding import depths_of, drop_padding_index, num_fixed_ids, token_embedding_name
from sdm_ray.models.lean import EMBEDDINGS, SHORTCUTS, lean_output
from sdm_ray.models.native import cls_pool, mean_pool, native_pooling

Pooling = Literal["native", "cls", "mean"]

_PREFIX = "hf_model."
_NOT_DIGESTED = {
    "_attn_implementation", "_name_or_path", "architectures", "dtype", "id2label", "label2id", "num_labels",
    "problem_type", "torch_dtype", "transformers_version",
}  # fmt: skip


class Trunk(nn.Module):
    """An encoder with its pooling, without its last linear layer; a `TrunkLike` for texts.

    `forward` maps `input_ids` (B, L) and `attention_mask` (B, L) to features (B, D). The module stays in evaluation
    mode (`train()` has no effect), and dropout is only applied if `forward` gets a seed. Its parameters are exactly the
    weights that the features depend on.

    Args:
        hf_model: a `ForSequenceClassification` if `pooling` is `native`, otherwise the bare encoder. It is modified:
            its last linear layer (or its unused pooler) is removed.
        pooling: reduction of hidden states to one vector.
    """

    def __init__(self, hf_model: Any, pooling: Pooling) -> None:
        super().__init__()
        self.pooling: Pooling = pooling
        self.model_type = str(hf_model.config.model_type)
        self.feature_dim = int(hf_model.config.hidden_size)
        if pooling == "native":
            self._replace_last_linear(hf_model, nn.Identity())
        elif getattr(hf_model, "pooler", None) is not None:
            hf_model.pooler = None
        self.hf_model = hf_model
        self._padding_index = drop_padding_index(hf_model)
        self.embedding_name = token_embedding_name(self, hf_model)
        self.fixed_ids = num_fixed_ids(hf_model.config) or 0
        self.has_shortcut = self.model_type in SHORTCUTS and self._reads_first_token()
        self.has_packing = self.model_type in EMBEDDINGS
        self.has_dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in hf_model.modules())
        self._depths = depths_of(name for name, _ in self.named_parameters())
        self.num_depths = 1 + max(self._depths.values())
        self.train(False)

    def _reads_first_token(self) -> bool:
        if self.pooling == "native" and self.model_type == "modernbert":
            return str(self.hf_model.config.classifier_pooling) == "cls"
        return self.pooling != "mean"

    def _replace_last_linear(self, hf_model: Any, layer: nn.Module) -> None:
        hf_model.set_submodule(native_pooling(self.model_type).last_linear, layer)

    def train(self, mode: bool = True) -> Trunk:
        """Stay in evaluation mode: dropout would make an attack's trajectory depend on global random state."""
        super().train(False)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters (of the given ones under `functional_call`)."""
        return next(self.parameters()).dtype

    @property
    def max_length(self) -> int:
        """Maximum number of tokens, including special ones, of the position embeddings."""
        config = self.hf_model.config
        limit = int(getattr(config, "max_position_embeddings", 1 << 30))
        for name, module in self.hf_model.named_modules():
            padding = getattr(module, "padding_idx", None)
            if name.endswith("position_embeddings") and padding is not None:
                return limit - int(padding) - 1  # RoBERTa-like models count positions from padding_idx + 1
        return limit

    @property
    def vocab_size(self) -> int:
        """Number of rows of the token embedding."""
        return int(self.hf_model.config.vocab_size)

    def check_data(self, width: int, max_id: int) -> None:
        """Reject data that would index past the embeddings: texts of `width` tokens, token ids up to `max_id`.

        Raises:
            UsageError: naming the setting to change.
        """
        if width > self.max_length:
            raise UsageError(
                f"data.max_length: texts are {width} tokens wide, but the encoder has positions for {self.max_length}; "
                f"set data.max_length to {self.max_length} or less"
            )
        if max_id >= self.vocab_size:
            raise UsageError(
                f"encoder.name: the tokenizer gives token id {max_id}, but the encoder has {self.vocab_size} "
                "embeddings; tokenizer and weights do not belong together"
            )

    def depth_of(self, name: str) -> int:
        """Depth of a parameter: 0 for the embeddings, i + 1 for layer i, L + 1 for anything after L layers."""
        return self._depths[name]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        shortcut: bool = False,
        places: Tensor | None = None,
        hidden_states: bool = False,
        token_states: bool = False,
        dropout_seed: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the features of texts.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 on tokens and 0 on padding.
            shortcut: omit the parts of the last layer that the first token does not need; only if `has_shortcut`. The
                features differ only by rounding. Parameters without effect on them (a last key bias) are not used.
            places: (T,) positions of the tokens in the batch (`packing.token_places`), with which padding costs almost
                nothing; only if `has_packing`. The features differ only by rounding.
            hidden_states: also return all hidden states; not with `shortcut` or `places`.
            token_states: also return the last of them alone; in the same cases, and not with `hidden_states`.
            dropout_seed: apply every dropout of the architecture, including that of the last linear layer. The same
                seed gives the same masks for the same shapes, device, `shortcut` and `places`; global random state is
                preserved. Not under `vmap`. None disables dropout.

        Returns:
            (B, D) features. With `hidden_states`, also (H, B, L, D) outputs of the embeddings and each layer, the last
            one after the encoder's final norm if it has one. With `token_states`, also (B, L, D), that last one.
        """
        states = hidden_states or token_states
        assert not shortcut or (self.has_shortcut and not states), (self.model_type, self.pooling)
        assert places is None or (self.has_packing and not states), self.model_type
        masks = self._additive_masks(attention_mask)
        with nullcontext() if dropout_seed is None else self._dropout(dropout_seed, input_ids.device):
            output: Any
            if shortcut or places is not None:
                output = lean_output(self.hf_model.base_model, input_ids, masks, first_only=shortcut, places=places)
            else:
                options = {"output_hidden_states": True} if hidden_states else {}
                output = self.hf_model.base_model(input_ids=input_ids, attention_mask=masks, **options)
            features = self._pool(output, attention_mask)
        if token_states:
            return features, output.last_hidden_state
        return (features, torch.stack(output.hidden_states)) if hidden_states else features

    def _pool(self, output: Any, attention_mask: Tensor) -> Tensor:
        if self.pooling == "native":
            return native_pooling(self.model_type).features(self.hf_model, output, attention_mask)
        if self.pooling == "cls":
            return cls_pool(output.last_hidden_state)
        return mean_pool(output.last_hidden_state, attention_mask)

    @contextmanager
    def _dropout(self, seed: int, device: torch.device) -> Iterator[None]:
        """Seed the device's global generator, which dropout uses, and restore its state, without synchronising."""
        generator = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index]
        state = generator.get_state()
        generator.manual_seed(seed)
        self.hf_model.train(True)
        try:
            yield
        finally:
            self.hf_model.train(False)
            generator.set_state(state)

    def _additive_masks(self, attention_mask: Tensor) -> Any:
        keep = attention_mask.to(self.dtype)[:, None, None, :]
        # At least float32's lowest: ModernBERT's softmax is in float32 and would turn float64's lowest into -inf.
        lowest = max(torch.finfo(self.dtype).min, torch.finfo(torch.float32).min)
        full = (1 - keep) * lowest
        if self.model_type != "modernbert":
            return full
        positions = torch.arange(attention_mask.shape[-1], device=attention_mask.device)
        distance = (positions[:, None] - positions[None, :]).abs()
        near = (distance <= self.hf_model.config.sliding_window).to(self.dtype)
        return {"full_attention": full, "sliding_attention": (1 - keep * near) * lowest}

    def digest(self) -> str:
        """SHA-256 (hex) of the weights, the pooling and the configuration fields that affect the computation."""
        config = {k: v for k, v in self.hf_model.config.to_dict().items() if k not in _NOT_DIGESTED}
        text = json.dumps({"pooling": self.pooling, "config": config}, sort_keys=True, default=str)
        return hashlib.sha256(f"{text}\0{params_digest(dict(self.named_parameters()))}".encode()).hexdigest()

    def export_hf(self, params: Params, head: Tensor, label_names: Sequence[str]) -> Any:
        """Build a stand-alone `ForSequenceClassification` with these weights, this head (C, D) and zero bias.

        Only for `native` pooling: other poolings have no such class.
        """
        assert self.pooling == "native", self.pooling
        model = copy.deepcopy(self.hf_model)
        weights = {name.removeprefix(_PREFIX): value.detach().cpu() for name, value in params.items()}
        model.to("cpu").load_state_dict(weights)
        last = nn.Linear(self.feature_dim, len(label_names), device="meta", dtype=head.dtype).to_empty(device="cpu")
        with torch.no_grad():
            last.weight.copy_(head.detach())
            last.bias.zero_()
        self._replace_last_linear(model, last)
        model.get_input_embeddings().padding_idx = self._padding_index
        model.config.id2label = dict(enumerate(label_names))
        model.config.label2id = {name: index for index, name in enumerate(label_names)}
        model.config.problem_type = "single_label_classification"
        model.num_labels = len(label_names)
        return model


def params_digest(params: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of named tensors: names, types, shapes and bytes, independent of order and device."""
    result = hashlib.sha256()
    for name in sorted(params):
        value = params[name].detach().cpu().contiguous()
        result.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        result.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()
