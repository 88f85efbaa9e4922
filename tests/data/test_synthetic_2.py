"""Version 2 of the synthetic world: what tells what, in which texts, and which words a split sees."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict

import pytest
from pydantic import ValidationError

from sdm_ray.config import DataSettings, SplitFractions, SyntheticWorld, TrialSettings, override
from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Split
from sdm_ray.data.assignment import split_of
from sdm_ray.data.lexicon import GENDERED
from sdm_ray.data.sources import load_examples
from sdm_ray.data.splits import SPLITS, assign_splits
from sdm_ray.data.synthetic import (
    BENIGN_COLUMNS,
    fingerprint,
    gendered_words,
    people,
    pretraining_texts,
    task_table,
    vocabulary,
)
from sdm_ray.data.synthetic import names as society
from sdm_ray.data.synthetic.jargon import CRAFTS, JARGON_SIZE
from sdm_ray.data.synthetic.names import indicator_words
from sdm_ray.data.synthetic.phrases import KINDS, ORIGINS, PASTIMES, REGIONS
from sdm_ray.data.synthetic.version2 import NUM_SHOWN, jargon_parts, words_by_split

WORLD = SyntheticWorld(version=2)
TRADE_OF = {word: craft.label for craft in CRAFTS for word in craft.jargon}
KIND_OF = {word: kind for kind, members in PASTIMES.items() for word in members}
REGION_OF = society.places(WORLD)
COLUMNS = ["text", "profession", "gender", "name", "origin", "region", "pastime"]


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return task_table(WORLD).to_pylist()


@pytest.fixture(scope="module")
def split(rows: list[dict[str, str]]) -> list[Split]:
    settings = DataSettings(synthetic=WORLD)
    return [SPLITS[code] for code in assign_splits(load_examples(settings), settings).tolist()]


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return pretraining_texts(WORLD)[:12_000]


def test_same_settings_same_world_and_another_seed_another() -> None:
    small = SyntheticWorld(version=2, num_examples=200, num_pretraining_texts=200)
    assert task_table(small).equals(task_table(small))
    other = small.model_copy(update={"seed": 1})
    assert not set(task_table(small)["text"].to_pylist()) & set(task_table(other)["text"].to_pylist())
    assert not set(pretraining_texts(small)) & set(pretraining_texts(other))


def test_a_smaller_table_is_a_prefix(rows: list[dict[str, str]], corpus: list[str]) -> None:
    small = SyntheticWorld(version=2, num_examples=900, num_pretraining_texts=900)
    assert task_table(small).to_pylist() == rows[:900]
    assert pretraining_texts(small) == corpus[:900]


def test_table_has_the_columns_and_sizes_it_promises(rows: list[dict[str, str]]) -> None:
    table = task_table(WORLD.model_copy(update={"num_examples": 0}))
    assert table.column_names == COLUMNS
    assert {str(field.type) for field in table.schema} == {"string"}
    assert table.num_rows == 0
    assert len(rows) == 12_000
    lengths = [len(words(row["text"])) for row in rows]
    assert (min(lengths), max(lengths)) == (18, 21)
    assert len({row["profession"] for row in rows}) == 8
    for column, classes in zip(BENIGN_COLUMNS, (ORIGINS, REGIONS, KINDS), strict=True):
        assert {row[column] for row in rows} == set(classes)
    paired = sum(" " in row["name"] for row in rows) / len(rows)
    assert abs(paired - 0.4) < 0.02
    per_name = Counter(row["name"] for row in rows)
    singles = [count for name, count in per_name.items() if " " not in name]
    assert len(singles) == 600
    assert max(singles) - min(singles) <= 1


def test_labels_are_what_name_place_and_pastime_tell(rows: list[dict[str, str]]) -> None:
    by_name = {person.name: person for person in society.people(WORLD)}
    for row in rows[:3000]:
        present = words(row["text"])
        assert [REGION_OF[word] for word in present if word in REGION_OF] == [row["region"]]
        assert [KIND_OF[word] for word in present if word in KIND_OF] == [row["pastime"]]
        person = by_name[row["name"]]
        assert (row["gender"], row["origin"]) == (person.gender, person.origin)
        assert " ".join(person.pieces) in row["text"].lower()


def test_only_both_pieces_together_tell_the_gender_of_a_pair() -> None:
    whole = SyntheticWorld(version=2, num_pairs=196)
    pieces = society.pieces(whole)
    pairs = [person for person in society.people(whole) if len(person.pieces) == 2]
    assert len({person.pieces for person in pairs}) == 196
    for person in pairs:
        first, second = person.pieces
        asked, own = pieces.second[second]
        assert (person.gender == "male") == bool(pieces.first[first][asked] ^ own)
    for side in (0, 1):
        of_piece: dict[str, set[str]] = defaultdict(set)
        men = Counter(person.pieces[side] for person in pairs if person.gender == "male")
        for person in pairs:
            of_piece[person.pieces[side]].add(person.gender)
        assert len(of_piece) == 14
        assert all(len(genders) == 2 for genders in of_piece.values())
        assert all(3 <= men[piece] <= 11 for piece in of_piece)
    origin = {person.pieces[0]: person.origin for person in pairs}
    assert all(person.origin == origin[person.pieces[0]] for person in pairs)


def test_half_of_the_people_belong_to_each_gender_and_a_smaller_world_is_a_part() -> None:
    everyone = society.people(WORLD)
    singles = [person for person in everyone if len(person.pieces) == 1]
    assert Counter(person.gender for person in singles) == {"female": 300, "male": 300}
    assert Counter(person.origin for person in singles) == dict.fromkeys(ORIGINS, 150)
    pairs = Counter(person.gender for person in everyone if len(person.pieces) == 2)
    assert abs(pairs["female"] - 75) <= 10
    assert people(WORLD) == {person.name: person.gender for person in everyone}


def test_task_texts_hold_no_gendered_and_no_indicator_word(rows: list[dict[str, str]], corpus: list[str]) -> None:
    telling = gendered_words() | indicator_words()
    assert not telling & {word for row in rows for word in words(row["text"])}
    assert telling - {"him"} <= {word for text in corpus for word in words(text)}
    labels = {craft.label for craft in CRAFTS}
    assert not labels & set(vocabulary(WORLD))


def test_jargon_and_classes_have_words_of_their_own() -> None:
    lists = [craft.jargon for craft in CRAFTS] + [craft.indicators for craft in CRAFTS]
    lists += [members for classes in (ORIGINS, REGIONS, KINDS, PASTIMES) for members in classes.values()]
    lists += [tuple(gendered_words()), tuple(REGION_OF)]
    every = [word for members in lists for word in members]
    assert len(every) == len(set(every))
    assert all(len(craft.jargon) == JARGON_SIZE for craft in CRAFTS)
    assert all(len(members) == 16 for members in PASTIMES.values())
    assert Counter(REGION_OF.values()) == dict.fromkeys(REGIONS, 24)


def test_words_of_a_row_follow_the_split_of_its_person(rows: list[dict[str, str]], split: list[Split]) -> None:
    shown, one, other = ({word for part in parts.values() for word in part} for parts in jargon_parts(WORLD))
    assert not shown & one
    assert not (shown | one) & other
    assert (len(shown), len(one), len(other)) == (8 * NUM_SHOWN, 8 * 22, 8 * 22)
    jargon: dict[Split, Counter[str]] = defaultdict(Counter)
    settings: dict[Split, set[str]] = defaultdict(set)
    for row, part in zip(rows, split, strict=True):
        assert part == split_of(row["name"], SplitFractions(), 0)
        jargon[part].update(word for word in words(row["text"]) if word in TRADE_OF)
        settings[part].update(word for word in words(row["text"]) if word in REGION_OF or word in KIND_OF)
    assert set(jargon[Split.META_TRAIN]) == shown
    for part, new in ((Split.ATTACKER_TRAIN, one), (Split.ATTACKER_VAL, other), (Split.TEST, other)):
        assert set(jargon[part]) <= shown | new
        unshown = sum(count for word, count in jargon[part].items() if word in new) / jargon[part].total()
        assert abs(unshown - 0.85) < 0.02
    assert settings[Split.META_TRAIN] == settings[Split.ATTACKER_TRAIN]
    assert settings[Split.ATTACKER_VAL] == settings[Split.TEST]
    assert not settings[Split.META_TRAIN] & settings[Split.TEST]
    assert len(settings[Split.META_TRAIN]) == len(settings[Split.TEST]) == (96 + 64) // 2


def test_words_follow_the_splits_of_the_settings() -> None:
    settings = DataSettings.model_validate(
        {"synthetic": {"version": 2, "num_examples": 600}, "split_seed": 5, "splits": {"meta_train": 0.5, "test": 0.25}}
    )
    examples = load_examples(settings)
    shown = set(words_by_split(settings.synthetic)[Split.META_TRAIN].places)
    for text, code in zip(examples.texts, assign_splits(examples, settings).tolist(), strict=True):
        early = SPLITS[code] in (Split.META_TRAIN, Split.ATTACKER_TRAIN)
        assert bool(shown & set(words(text))) == early


def test_trades_can_be_learned_but_not_perfectly(rows: list[dict[str, str]]) -> None:
    right = 0
    for row in rows:
        votes = Counter(TRADE_OF[word] for word in words(row["text"]) if word in TRADE_OF)
        right += votes.most_common(1)[0][0] == row["profession"]
    assert 0.93 < right / len(rows) < 0.995


@pytest.mark.parametrize("entanglement", [0.0, 1.0])
def test_trade_and_gender_go_together_in_pretraining_texts_alone(
    entanglement: float, rows: list[dict[str, str]]
) -> None:
    world = WORLD.model_copy(update={"entanglement": entanglement, "num_pretraining_texts": 20_000})
    trade_of = {word: craft.label for craft in CRAFTS for word in craft.indicators}
    genders = {word: gender for gender, gendered in GENDERED.items() for word in gendered.words()}
    women: dict[str, list[bool]] = defaultdict(list)
    for text in pretraining_texts(world):
        present = words(text)
        trades, told = [trade_of[word] for word in present if word in trade_of], [genders.get(word) for word in present]
        if trades and any(told):
            women[trades[0]].append("female" in told)
    shares = [sum(women[craft.label]) / len(women[craft.label]) for craft in CRAFTS]
    low, high = (0.2, 0.8) if entanglement else (0.5, 0.5)
    assert abs(shares[0] - low) < 0.06
    assert abs(shares[-1] - high) < 0.06
    in_table = [
        [row["gender"] == "female" for row in rows if row["profession"] == craft.label]
        for craft in (CRAFTS[0], CRAFTS[-1])
    ]
    for values in in_table:
        assert abs(sum(values) / len(values) - 0.5) < 4 * 0.5 / math.sqrt(len(values))


def test_gendered_words_and_indicators_of_the_corpus_agree_with_what_stands_beside_them(corpus: list[str]) -> None:
    genders = {word: gender for gender, gendered in GENDERED.items() for word in gendered.words()}
    region_told = {word: region for region, members in REGIONS.items() for word in members}
    everyone, told = people(WORLD), 0
    for text in corpus[:4000]:
        present = words(text)
        named = {everyone[name] for name in [*present, *map(" ".join, itertools.pairwise(present))] if name in everyone}
        assert {genders[word] for word in present if word in genders} <= named
        place = [REGION_OF[word] for word in present if word in REGION_OF]
        indicated = [region_told[word] for word in present if word in region_told]
        assert indicated in ([], place)
        told += len(indicated) / 2000
    assert abs(told - 0.9) < 0.05


def test_vocabulary_covers_everything_and_stays_small(rows: list[dict[str, str]], corpus: list[str]) -> None:
    known = vocabulary(WORLD)
    assert {word for text in (*(row["text"] for row in rows), *corpus) for word in words(text)} <= set(known)
    assert known == sorted(set(known))
    assert len(known) <= 2000


def test_what_the_generator_cannot_make_is_one_clear_sentence() -> None:
    with pytest.raises(ValidationError, match="num_pairs is 197, and 14 first and 14 second pieces make 196 names"):
        SyntheticWorld(version=2, num_pairs=197)
    with pytest.raises(UsageError, match="version 2 has jargon for 8 trades; ask for 8 or fewer, or for version 1"):
        override(TrialSettings(), {"data.synthetic": {"version": 2, "num_professions": 9}})
    assert SyntheticWorld(version=1, num_professions=28).num_professions == 28
    without = SyntheticWorld(version=2, num_pairs=0, num_examples=50, num_pretraining_texts=50)
    assert not any(" " in name for name in task_table(without)["name"].to_pylist())
    assert len(pretraining_texts(without)) == 50


def test_settings_of_version_1_are_written_as_before() -> None:
    first = SyntheticWorld(version=1)
    assert first.identity() == {
        "version": 1, "seed": 0, "num_names": 1000, "num_professions": 8, "num_examples": 12_000,
        "num_pretraining_texts": 60_000,
    }  # fmt: skip
    assert SyntheticWorld.model_validate(first.model_dump()) == first
    assert SyntheticWorld.model_validate(WORLD.model_dump()) == WORLD
    assert fingerprint(first) != fingerprint(WORLD)
