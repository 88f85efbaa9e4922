"""Small encoders and data sets that tests write themselves: no hub, no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = {"f": ["mara", "lena", "ines", "vera", "nora", "alma"], "m": ["otto", "egon", "hans", "kurt", "theo", "emil"]}
WORDS = {
    "nurse": ["ward", "patients", "care"],
    "pilot": ["planes", "flights", "airport"],
    "tailor": ["coats", "cloth", "needles"],
}
COMMON = ["works", "with", "and", "likes", "every", "day", "in", "town", "they", "their", "them", "number", "."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = (
    SPECIAL
    + sorted(name for names in NAMES.values() for name in names)
    + sorted(word for words in WORDS.values() for word in words)
    + sorted(WORDS)
    + COMMON
    + [str(digit) for digit in range(10)]
)

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "modernbert")


class NoHostSync(TorchDispatchMode):
    """Refuses operations that read a tensor's values on the host: on a GPU they wait for it."""

    FORBIDDEN = ("_local_scalar_dense", "is_nonzero", "nonzero", "_unique", "unique", "masked_select", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.startswith(self.FORBIDDEN), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def tiny_config(model_type: str, **changes: Any) -> Any:
    """Configuration of a 2-layer, 16-wide encoder over `VOCABULARY`."""
    from transformers import AutoConfig

    common: dict[str, Any] = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "max_position_embeddings": 64}
    if model_type == "distilbert":
        sizes: dict[str, Any] = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if model_type == "electra":
        sizes["embedding_size"] = 8
    if model_type == "modernbert":
        sizes |= {
            "local_attention": 4, "classifier_pooling": "mean", "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3,
            "sep_token_id": 3,
        }  # fmt: skip
    # Wider than usual, so that a wrong mask or a wrong layer shows in the outputs.
    return AutoConfig.for_model(model_type, **{**common, **sizes, "initializer_range": 0.3, **changes})


def write_tokenizer(folder: Path) -> None:
    """A word-level, lower-casing fast tokenizer over `VOCABULARY`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=64,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)


def write_encoder(folder: Path, model_type: str = "modernbert", *, seed: int = 0, **changes: Any) -> Path:
    """A model folder with random weights of a masked-LM model (without the classifier, as real checkpoints are)."""
    from transformers import AutoModelForMaskedLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForMaskedLM.from_config(tiny_config(model_type, **changes))
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.normal_(1.0, 0.1)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def make_rows(num_rows: int = 240) -> dict[str, list[Any]]:
    """Distinct biographies, every profession with every gender: columns text, profession, gender, name."""
    rows: dict[str, list[Any]] = {"text": [], "profession": [], "gender": [], "name": []}
    professions = sorted(WORDS)
    for index in range(num_rows):
        profession = professions[index % len(professions)]
        gender = "fm"[(index // len(professions)) % 2]
        name = NAMES[gender][(index // 6) % 6]
        word = WORDS[profession][(index // 36) % 3]
        digits = " ".join(str(index))
        rows["text"].append(f"{name.title()} works with {word} every day in town number {digits} .")
        rows["profession"].append(profession)
        rows["gender"].append(gender)
        rows["name"].append(name)
    return rows


def write_rows(path: Path, rows: dict[str, list[Any]]) -> Path:
    """Write columns in the format that the suffix names."""
    table = pa.table(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        import pyarrow.csv

        pyarrow.csv.write_csv(table, path)
    elif path.suffix == ".tsv":
        import pyarrow.csv

        pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(delimiter="\t"))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        raise AssertionError(path.suffix)
    return path
