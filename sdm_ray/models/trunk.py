"""The trunk: any Hugging Face encoder as a pure function from tokens to one feature vector a text.

It must survive `torch.func.functional_call`, `vmap` over stacked parameters and double backward. transformers branches
on the contents of a 2-D attention mask, which `vmap` cannot trace, and passes a 4-D mask through; so the additive 4-D
mask is built here, arithmetically, and attention is the eager implementation, which has a second derivative everywhere.

In float64 the architectures keep double precision but for ModernBERT, whose rotary embedding and softmax are computed
in float32 by transformers whatever the type of its weights.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdm_ray.errors import UsageError
from sdm_ray.models.native import cls_pool, mean_pool, native_pooling
from sdm_ray.types import Params

Pooling = Literal["native", "cls", "mean"]

_PREFIX = "hf_model."
_NOT_DIGESTED = {
    "_attn_implementation", "_name_or_path", "architectures", "dtype", "id2label", "label2id", "num_labels",
    "problem_type", "torch_dtype", "transformers_version",
}  # fmt: skip


class Trunk(nn.Module):
    """An encoder with its pooling, without its last linear layer and without dropout.

    `forward` maps `input_ids` (B, L) and `attention_mask` (B, L) to features (B, D). The module stays in evaluation
    mode (`train()` does not change it); its parameters are exactly the weights that the features depend on.

    Args:
        hf_model: a `ForSequenceClassification` where `pooling` is `native`, else the bare encoder. It is taken over:
            its last linear layer (or its unused pooler) is removed.
        pooling: how hidden states become one vector.
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
        for module in hf_model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.hf_model = hf_model
        self.train(False)

    def _replace_last_linear(self, hf_model: Any, layer: nn.Module) -> None:
        hf_model.set_submodule(native_pooling(self.model_type).last_linear, layer)

    def train(self, mode: bool = True) -> Trunk:
        """Stay in evaluation mode: dropout would make an attack's trajectory depend on the random state."""
        super().train(False)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters (of those swapped in, under `functional_call`)."""
        return next(self.parameters()).dtype

    @property
    def max_length(self) -> int:
        """Tokens, special ones included, that the position embeddings reach."""
        config = self.hf_model.config
        limit = int(getattr(config, "max_position_embeddings", 1 << 30))
        # These count positions from padding_idx + 1.
        return limit - config.pad_token_id - 1 if self.model_type in ("roberta", "xlm-roberta") else limit

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        return int(self.hf_model.config.vocab_size)

    def check_data(self, width: int, max_id: int) -> None:
        """Refuse data that would index past the embeddings: `width` tokens a text, token ids up to `max_id`.

        Raises:
            UsageError: saying which setting to change.
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

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Features (B, D) of tokens (B, L); `attention_mask` (B, L) is 1 on tokens and 0 on padding."""
        encoder = self.hf_model.base_model
        output = encoder(input_ids=input_ids, attention_mask=self._additive_masks(attention_mask))
        if self.pooling == "native":
            return native_pooling(self.model_type).features(self.hf_model, output, attention_mask)
        if self.pooling == "cls":
            return cls_pool(output.last_hidden_state)
        return mean_pool(output.last_hidden_state, attention_mask)

    def _additive_masks(self, attention_mask: Tensor) -> Any:
        keep = attention_mask.to(self.dtype)[:, None, None, :]
        # Not below float32's, for ModernBERT's softmax is in float32 and would turn float64's lowest into -inf.
        lowest = max(torch.finfo(self.dtype).min, torch.finfo(torch.float32).min)
        full = (1 - keep) * lowest
        if self.model_type != "modernbert":
            return full
        positions = torch.arange(attention_mask.shape[-1], device=attention_mask.device)
        distance = (positions[:, None] - positions[None, :]).abs()
        near = (distance <= self.hf_model.config.sliding_window).to(self.dtype)
        return {"full_attention": full, "sliding_attention": (1 - keep * near) * lowest}

    def digest(self) -> str:
        """SHA-256 (hex) of the weights, the pooling and what the configuration says about the computation."""
        config = {k: v for k, v in self.hf_model.config.to_dict().items() if k not in _NOT_DIGESTED}
        text = json.dumps({"pooling": self.pooling, "config": config}, sort_keys=True, default=str)
        return hashlib.sha256(f"{text}\0{params_digest(dict(self.named_parameters()))}".encode()).hexdigest()

    def export_hf(self, params: Params, head: Tensor, label_names: Sequence[str]) -> Any:
        """A stand-alone `ForSequenceClassification` with these weights, this head (C, D) and zero bias.

        Only with `native` pooling: other poolings have no such class.
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
