"""General text: the same texts from every source and in any order, batches as wide as they must be, clear refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sdm_ray.config import DataSettings, EncoderSettings, GeneralTextSettings, RetainSettings, SyntheticWorld
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.types import Split, Task
from sdm_ray.data import general
from sdm_ray.data.device import DeviceData
from sdm_ray.data.general import GeneralText, load_general_text, meta_training_text
from sdm_ray.data.synthetic import gendered_words, pretraining_texts, telling_words
from sdm_ray.data.tokenized import prepare
from sdm_ray.models.encoder import load_tokenizer, tokenizer_digest
from tests.fakes import files as helpers

TEXTS = ["mara works", "otto likes planes and flights every day in town with patients", "they number 7", "vera"]
WORLD = SyntheticWorld(version=1, num_pretraining_texts=30)


@pytest.fixture(scope="module")
def tokenizer(bert_folder: Path) -> Any:
    return load_tokenizer(EncoderSettings(name=str(bert_folder)), cache_dir=bert_folder)


def load(tokenizer: Any, source: Path | str, *, max_length: int = 64, **changes: Any) -> GeneralText:
    settings = RetainSettings.model_validate({"source": str(source), **changes})
    return load_general_text(settings, tokenizer, world=WORLD, max_length=max_length, device="cpu")


def decoded(text: GeneralText, tokenizer: Any) -> set[str]:
    ids, mask = text.batch(torch.arange(len(text)))
    read = [row[: int(length)] for row, length in zip(ids, mask.sum(1), strict=True)]
    return set(tokenizer.batch_decode(read, skip_special_tokens=True))


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl", ".arrow"])
def test_every_format_and_order_gives_the_same_texts(suffix: str, tokenizer: Any, tmp_path: Path) -> None:
    one = load(tokenizer, helpers.write_rows(tmp_path / f"one{suffix}", {"text": TEXTS}))
    other = load(tokenizer, helpers.write_rows(tmp_path / "folder" / "b.parquet", {"text": TEXTS[::-1]}).parent)
    assert decoded(one, tokenizer) == set(TEXTS)
    assert one.digest == other.digest
    assert one.digest != load(tokenizer, tmp_path / f"one{suffix}", max_texts=3).digest


def test_blank_missing_and_repeated_texts_do_not_count(tokenizer: Any, tmp_path: Path) -> None:
    rows = {"body": ["mara works", None, "  ", "", "Mara  works", "vera"]}
    text = load(tokenizer, helpers.write_rows(tmp_path / "rows.parquet", rows), text_column="body")
    assert decoded(text, tokenizer) == {"mara works", "vera"}
    assert len(text) == 2


def test_text_in_any_layout_of_arrow_is_text(tokenizer: Any, tmp_path: Path) -> None:
    for kind in (pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        rows = pa.table({"text": pa.array(TEXTS).cast(kind)})
        with pa.ipc.new_stream(tmp_path / "rows.arrow", rows.schema) as writer:
            writer.write_table(rows)
        assert decoded(load(tokenizer, tmp_path / "rows.arrow"), tokenizer) == set(TEXTS)


def test_the_texts_kept_do_not_depend_on_the_others_order(tokenizer: Any, tmp_path: Path) -> None:
    rows = helpers.make_rows(60)["text"]
    one = load(tokenizer, helpers.write_rows(tmp_path / "one.parquet", {"text": rows}), max_texts=10)
    other = load(tokenizer, helpers.write_rows(tmp_path / "other.parquet", {"text": rows[::-1]}), max_texts=10)
    assert (len(one), one.digest) == (10, other.digest)


def test_pretraining_is_the_corpus_of_the_world(tokenizer: Any) -> None:
    text = load(tokenizer, "pretraining", max_length=8)
    assert len(text) == len(set(pretraining_texts(WORLD)))
    assert text.width == 8


@pytest.mark.parametrize("version", [1, 2])
def test_a_scrubbed_corpus_holds_no_word_that_tells(tokenizer: Any, version: int, monkeypatch: Any) -> None:
    world, seen = SyntheticWorld(version=version, num_pretraining_texts=20), list[str]()
    encode = general.encode
    monkeypatch.setattr(general, "encode", lambda texts, *rest: seen.extend(texts) or encode(texts, *rest))
    settings = GeneralTextSettings(source="pretraining")
    for scrubbed in (False, True):
        seen.clear()
        load_general_text(settings, tokenizer, world=world, max_length=64, device="cpu", scrubbed=scrubbed)
        words = {word.lower() for text in seen for word in re.findall(r"\w+", text)}
        assert bool(words & telling_words(world)) != scrubbed
    seen.clear()
    load_general_text(settings, tokenizer, world=world, max_length=64, device="cpu", scrubbed=True, keep_names=True)
    words = {word.lower() for text in seen for word in re.findall(r"\w+", text)}
    assert not words & gendered_words()
    assert words & telling_words(world), "names stay"
    assert len(words) > 20


def test_scrubbed_texts_of_meta_training_lack_the_tokens_of_names_alone(tokenizer: Any, tmp_path: Path) -> None:
    rows = helpers.make_rows()
    rows["text"] = [f"every {text}" for text in rows["text"]]
    source = helpers.write_rows(tmp_path / "rows.parquet", rows)
    data = DeviceData(
        prepare(DataSettings(source=str(source)), tokenizer, tokenizer_digest(tokenizer), tmp_path), "cpu"
    )
    indices = data.indices(Split.META_TRAIN)
    whole, scrubbed = (decoded(meta_training_text(data, indices, scrubbed=each), tokenizer) for each in (False, True))
    names = set(rows["name"])
    assert all(text.split()[1] in names for text in whole)
    left = {" ".join(word for place, word in enumerate(text.split()) if place not in (1, 2)) for text in whole}
    assert scrubbed == left, "no name of these texts is known, so that the word after the capitalised one goes too"


def test_batches_are_as_wide_as_their_texts_in_eights(tokenizer: Any, tmp_path: Path) -> None:
    text = load(tokenizer, helpers.write_rows(tmp_path / "rows.parquet", {"text": TEXTS}))
    lengths = [int(text.batch(torch.tensor([index]))[1].sum()) for index in range(len(text))]
    assert sorted(lengths) == [3, 4, 5, 13]
    short = torch.tensor([index for index, length in enumerate(lengths) if length < 8])
    with helpers.NoHostSync():
        ids, mask = text.batch(short)
        host = text.host_ids(short)
    assert ids.shape == mask.shape == (3, 8)
    assert torch.equal(ids, host)
    assert torch.equal(mask.sum(1), torch.tensor([lengths[index] for index in short]))
    assert torch.equal(ids == tokenizer.pad_token_id, mask == 0)
    assert text.batch(torch.arange(4))[0].shape == (4, text.width) == (4, 16)
    assert text.max_id == int(text.batch(torch.arange(4))[0].max())


def test_long_texts_are_cut_and_never_wider_than_asked(tokenizer: Any, tmp_path: Path) -> None:
    path = helpers.write_rows(tmp_path / "rows.parquet", {"text": TEXTS})
    assert load(tokenizer, path, max_length=10).batch(torch.arange(4))[0].shape == (4, 10)


def test_texts_of_meta_training_are_those_of_its_examples(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of different widths as in one."""
    rows = helpers.make_rows()
    rows["text"][::2] = [" ".join(text.split()[-5:]) for text in rows["text"][::2]]
    source = helpers.write_rows(tmp_path / "rows.parquet", rows)
    tokenized = prepare(DataSettings(source=str(source)), tokenizer, tokenizer_digest(tokenizer), tmp_path)
    data = DeviceData(tokenized, "cpu")
    indices = data.indices(Split.META_TRAIN)
    whole = meta_training_text(data, indices, max_texts=1000)
    monkeypatch.setattr("sdm_ray.data.general.CHUNK_TEXTS", 1)
    assert meta_training_text(data, indices, max_texts=1000).digest == whole.digest
    assert meta_training_text(data, indices.flip(0), max_texts=1000).digest == whole.digest
    kept = {tuple(row.tolist()) for row in whole.host_ids(torch.arange(len(whole)))}
    wanted = {tuple(row.tolist()) for row in data.batch(indices, Task.DESIRED).input_ids}
    assert kept == wanted
    few = meta_training_text(data, indices, max_texts=5)
    assert len(few) == 5
    assert {tuple(row.tolist()) for row in few.host_ids(torch.arange(5))} <= kept


def test_lengths_and_ids_are_those_given() -> None:
    text = GeneralText(np.array([[2, 9, 3], [2, 3, 0]], dtype=np.int32), np.array([3, 2]), "cpu")
    ids, mask = text.batch(torch.tensor([1, 0]))
    assert ids.tolist() == [[2, 3, 0], [2, 9, 3]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]


REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no such file": ({"source": "./none.parquet"}, UsageError, r"train\.retain\.source: file ./none.parquet does not"),
    "neither": ({"source": "pretrainig"}, UsageError, r"train\.retain\.source 'pretrainig' is neither 'pretraining'"),
    "no such column": ({"text_column": "body"}, UsageError, r"train\.retain\.text_column: .* has no column 'body'"),
    "numbers": ({"text_column": "number"}, UsageError, r"train\.retain\.text_column: column 'number' holds int64"),
    "blank": ({"text_column": "blank"}, UsageError, r"train\.retain\.source: .* holds no text in column 'blank'"),
    "no hub": ({"source": "nobody/nothing"}, RunError, r"'nobody/nothing' could not be .*point train\.retain\.source"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_used_is_one_sentence_about_the_right_setting(
    case: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, kind, message = REFUSALS[case]
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: (_ for _ in ()).throw(ConnectionError()))
    rows = {"text": TEXTS, "number": [1, 2, 3, 4], "blank": ["", " ", None, ""]}
    path = helpers.write_rows(tmp_path / "rows.parquet", rows)
    with pytest.raises(kind, match=message) as caught:
        load(tokenizer, **{"source": path, **changes})
    assert "\n" not in str(caught.value)
