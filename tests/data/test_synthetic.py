"""Version 1 of the synthetic world: deterministic, no cue to gender but the name, and learnable professions."""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict

import pytest

from sdm_ray.config import DataSettings, SyntheticWorld
from sdm_ray.data.lexicon import GENDERED, TRADES
from sdm_ray.data.sources import load_examples
from sdm_ray.data.splits import assign_splits
from sdm_ray.data.synthetic import fingerprint, gendered_words, people, pretraining_texts, task_table, vocabulary

WORLD = SyntheticWorld(version=1)


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return task_table(WORLD).to_pylist()


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return pretraining_texts(WORLD)


def naive_bayes_accuracy(features: list[list[str]], labels: list[str]) -> float:
    """Accuracy on the second half of a naive Bayes classifier that was fitted to the first."""
    half = len(labels) // 2
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for items, label in zip(features[:half], labels[:half], strict=True):
        counts[label].update(set(items))
    totals = Counter(labels[:half])

    def score(items: list[str], label: str) -> float:
        return sum(math.log((counts[label][item] + 1) / (totals[label] + 2)) for item in set(items))

    guesses = [max(sorted(totals), key=lambda label: score(items, label)) for items in features[half:]]
    return sum(guess == label for guess, label in zip(guesses, labels[half:], strict=True)) / len(guesses)


def test_version_1_is_frozen() -> None:
    # A different value means a different world: every published figure would be about another one. Make version 2.
    assert fingerprint(WORLD) == "2597b431cfeb5fd2"
    assert fingerprint(SyntheticWorld(version=1, seed=7, num_names=31, num_professions=28)) == "4f3d44a2a4c3bedd"


def test_same_settings_same_world_and_another_seed_another() -> None:
    small = SyntheticWorld(version=1, num_examples=200, num_pretraining_texts=200)
    assert task_table(small).equals(task_table(small))
    assert pretraining_texts(small) == pretraining_texts(small)
    other = small.model_copy(update={"seed": 1})
    assert not set(task_table(small)["text"].to_pylist()) & set(task_table(other)["text"].to_pylist())


def test_a_smaller_table_is_a_prefix(rows: list[dict[str, str]], corpus: list[str]) -> None:
    small = SyntheticWorld(version=1, num_examples=1500, num_pretraining_texts=1500)
    assert task_table(small).to_pylist() == rows[:1500]
    assert pretraining_texts(small) == corpus[:1500]


def test_table_has_the_columns_and_sizes_it_promises(rows: list[dict[str, str]]) -> None:
    table = task_table(WORLD)
    assert table.column_names == ["text", "profession", "gender", "name"]
    assert {str(field.type) for field in table.schema} == {"string"}
    assert len(rows) == WORLD.num_examples
    per_name = Counter(row["name"] for row in rows)
    assert len(per_name) == WORLD.num_names
    assert max(per_name.values()) - min(per_name.values()) <= 1
    assert {row["profession"] for row in rows} == {trade.label for trade in TRADES[: WORLD.num_professions]}
    lengths = [len(words(row["text"])) for row in rows]
    assert min(lengths) >= 12
    assert max(lengths) <= 22


def test_empty_table_keeps_its_schema() -> None:
    table = task_table(WORLD.model_copy(update={"num_examples": 0}))
    assert table.column_names == ["text", "profession", "gender", "name"]
    assert table.num_rows == 0


def test_half_of_the_names_belong_to_each_gender() -> None:
    for num_names in (1000, 7):
        counts = Counter(people(SyntheticWorld(version=1, num_names=num_names)).values())
        assert counts["female"] - counts["male"] == num_names % 2


def test_spelling_does_not_tell_the_gender() -> None:
    listed = list(people(SyntheticWorld(version=1, num_names=4000)).items())
    random.Random(0).shuffle(listed)
    names = dict(listed)

    def pieces(name: str) -> list[str]:
        marked = f"^{name}$"
        return [marked[start : start + size] for size in (1, 2, 3) for start in range(len(marked) - size + 1)]

    # 2 000 names are guessed; chance is 0.5 with a standard deviation of 0.011.
    assert abs(naive_bayes_accuracy([pieces(name) for name in names], list(names.values())) - 0.5) < 0.04


def test_nothing_but_the_name_tells_the_gender(rows: list[dict[str, str]]) -> None:
    features = [[word for word in words(row["text"]) if word != row["name"]] for row in rows]
    assert not gendered_words() & {word for items in features for word in items}
    # 6 000 texts are guessed; chance is 0.5 with a standard deviation of 0.0065.
    assert abs(naive_bayes_accuracy(features, [row["gender"] for row in rows]) - 0.5) < 0.025


def test_every_text_keeps_its_name_and_no_other(rows: list[dict[str, str]]) -> None:
    names = set(people(WORLD))
    assert all(names & set(words(row["text"])) == {row["name"]} for row in rows)
    assert all(people(WORLD)[row["name"]] == row["gender"] for row in rows[:100])


def test_profession_is_independent_of_gender_and_name(rows: list[dict[str, str]]) -> None:
    def chi_squared(key: str) -> tuple[float, int]:
        observed = Counter((row[key], row["profession"]) for row in rows)
        groups, professions = Counter(row[key] for row in rows), Counter(row["profession"] for row in rows)
        expected = {(g, p): groups[g] * professions[p] / len(rows) for g in groups for p in professions}
        value = sum((observed[cell] - mean) ** 2 / mean for cell, mean in expected.items())
        return value, (len(groups) - 1) * (len(professions) - 1)

    for key in ("gender", "name"):
        value, freedom = chi_squared(key)
        assert abs(value - freedom) < 4 * math.sqrt(2 * freedom), key


def test_professions_can_be_learned_but_not_perfectly(rows: list[dict[str, str]]) -> None:
    owner = {word: trade.label for trade in TRADES for word in (*trade.actions, *trade.things, *trade.places)}
    features = [[word for word in words(row["text"]) if word in owner] for row in rows]
    assert 0.96 < naive_bayes_accuracy(features, [row["profession"] for row in rows]) < 0.995


def test_no_text_names_a_profession(rows: list[dict[str, str]], corpus: list[str]) -> None:
    labels = {trade.label for trade in TRADES}
    seen = {word for text in (*(row["text"] for row in rows), *corpus) for word in words(text)}
    assert not labels & seen


def test_vocabulary_covers_everything_and_stays_small(rows: list[dict[str, str]], corpus: list[str]) -> None:
    seen = {word for text in (*(row["text"] for row in rows), *corpus) for word in words(text)}
    assert seen <= set(vocabulary(WORLD))
    largest = vocabulary(SyntheticWorld(version=1, num_professions=28))
    assert largest == sorted(set(largest))
    assert len(largest) <= 1800


def test_every_profession_has_words_of_its_own() -> None:
    owned = [word for trade in TRADES for word in (*trade.actions, *trade.things, *trade.places)]
    assert len(owned) == len(set(owned))
    assert len({trade.label for trade in TRADES}) == len(TRADES) == 28


def test_gendered_words_of_the_corpus_agree_with_the_name_beside_them(corpus: list[str]) -> None:
    names = people(WORLD)
    gender_of = {word: gender for gender, gendered in GENDERED.items() for word in gendered.words()}
    with_gender = 0
    for text in corpus[:6000]:
        present = words(text)
        people_here = {word for word in present if word in names}
        genders = {gender_of[word] for word in present if word in gender_of}
        with_gender += bool(genders)
        assert genders <= {names[name] for name in people_here}, text
    assert with_gender / 6000 > 0.9


def test_splits_share_no_name() -> None:
    settings = DataSettings(synthetic=WORLD)
    examples = load_examples(settings)
    split = assign_splits(examples, settings)
    assert examples.groups is not None
    names = [{name for name, code in zip(examples.groups, split, strict=True) if code == wanted} for wanted in range(4)]
    assert sum(map(len, names)) == len(set.union(*names)) == WORLD.num_names
    assert all(len(part) > 60 for part in names)
