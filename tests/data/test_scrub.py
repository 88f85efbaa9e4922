"""Pronoun scrubbing: the paper's five words, their case, and nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdm_ray.data.names import counted
from sdm_ray.data.scrub import scrub_names, scrub_pronouns, word_scrubber
from tests.data.test_names import corpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She met him at his desk.", "They met them at their desk."),
        ("HE SAW HER; he left.", "THEY SAW THEIR; they left."),
        ("Her work, his art: him.", "Their work, their art: them."),
        ("she's here (he isn't)", "they's here (they isn't)"),
        (
            "The sheriff, the other, this, Himalaya, hers, herself",
            "The sheriff, the other, this, Himalaya, hers, herself",
        ),
        ("", ""),
    ],
)
def test_scrubbing(text: str, expected: str) -> None:
    assert scrub_pronouns(text) == expected


@given(st.lists(st.sampled_from(["she", "He", "HIM", "his", "her", "then", "Mara", "o'her", "\n", ","]), max_size=12))
def test_no_pronoun_is_left_and_scrubbing_twice_is_scrubbing_once(words: list[str]) -> None:
    scrubbed = scrub_pronouns(" ".join(words))
    assert not re.search(r"\b(she|he|her|his|him)\b", scrubbed, re.IGNORECASE)
    assert scrub_pronouns(scrubbed) == scrubbed
    assert len(scrubbed.split()) == len(" ".join(words).split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Today Mary Ann met her friend, Otto.", "Today met their friend,."),
        ("We met. Mary left! I stayed: Paul too.", "We met. Mary left! I stayed: Paul too."),
        ("in O'Hara, she said", "in, they said"),
        ("no names here", "no names here"),
        ("", ""),
    ],
)
def test_capitalised_words_inside_sentences_are_left_out(text: str, expected: str) -> None:
    assert scrub_names(text) == expected


def test_words_are_left_out_whatever_their_case() -> None:
    assert word_scrubber({"mara", "his"})("Mara, of marae, met his  MARA .") == ", of marae, met."


def test_names_that_begin_a_sentence_are_left_out_of_a_corpus() -> None:
    texts = corpus(300)
    assert scrub_names(texts[0]) == "Bababa will work at the of. The staff agree."
    assert scrub_names(texts[0], counted(texts)) == "will work at the of. The staff agree."
    assert scrub_names(texts[1], counted(texts)) == "Dr. will work at the of. The staff agree."
