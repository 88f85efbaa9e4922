"""Where texts name somebody, in characters and in tokens."""

from __future__ import annotations

import pytest

from sdm_ray.data.names import FEWEST_TEXTS, counted, positions, spans


@pytest.mark.parametrize(
    ("text", "group", "found"),
    [
        ("Now mira sews.", "Mira", (4, -1)),
        ("Admirals sail; Mira sews.", "mira", (15, -1)),
        ("Here Mira  Dalen sews.", "mira dalen", (5, 11)),
        ("The nurse Ona Vell works.", None, (10, 14)),
        ("She sews. Then Ona works.", None, (15, 19)),
        ("She sews. Ona works.", None, (-1, -1)),
        ("She met Ona", None, (8, -1)),
        ("Today I met Ona Vell.", "person-17", (12, 16)),
    ],
)
def test_names_are_found(text: str, group: str | None, found: tuple[int, int]) -> None:
    assert spans([text], None if group is None else [group]) == [found]


def test_tokens_that_hold_a_name() -> None:
    offsets = [(0, 0), (0, 4), (5, 7), (7, 9), (11, 16), (0, 0)]
    text = "They Mira, Tolen"
    assert positions(offsets, (5, 11), text) == (2, 4)
    assert positions(offsets, (5, -1), text) == (3, 2), "a word of two tokens: what it tells is in its ending"
    assert positions([(0, 0), (0, 2), (2, 4), (4, 6), (6, 7)], (0, -1), "Miraba.") == (3, 1), "of three"
    assert positions(offsets, (0, -1), text) == (1, -1), "a word of one token"
    assert positions(offsets, (30, -1), text) == (-1, -1), "it was cut off"


def corpus(size: int) -> list[str]:
    """Texts that begin with a name, or with a title and a name; every name is rare."""
    syllables = ("ba", "do", "ke", "lu", "mi", "no", "pe", "ra")
    rare = [(a + b + c).capitalize() for a in syllables for b in syllables for c in syllables]
    return [
        f"{'Dr. ' if index % 3 else ''}{rare[index % len(rare)]} will work at the University of Bath. The staff agree."
        for index in range(size)
    ]


def test_names_that_begin_a_text_are_found_by_counting_words() -> None:
    texts = [*corpus(600), "Born in Paris, they sew.", "Will sews in Rome.", "NASA sews with IBM."]
    found = spans(texts, None)
    assert found[:600] == [(4 if index % 3 else 0, -1) for index in range(600)]
    assert found[600] == (0, -1), "a mistake: the word is rare, and nowhere in lower case"
    assert found[601] == (13, -1), "words that are verbs too are no names"
    assert found[602] == (15, -1), "neither are acronyms, if there is anything else"


def test_common_words_are_no_names_and_few_texts_tell_nothing() -> None:
    texts = [*corpus(600), *("Today they sew; born here." for _ in range(9)), "Today Mira Vell sews.", "Born in Paris."]
    found = spans(texts, None)
    assert found[-2] == (6, -1)
    assert found[-1] == (8, -1)
    capitals = counted(texts)
    assert capitals is not None
    assert not any(capitals.are_in(word) for word in ("University", "Bath", "The", "Dr", "Today", "I"))
    assert counted(texts[: FEWEST_TEXTS - 1]) is None
    assert spans(corpus(FEWEST_TEXTS - 1), None)[3] != (0, -1)
