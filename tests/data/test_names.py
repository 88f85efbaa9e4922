"""Where texts name somebody, in characters and in tokens."""

from __future__ import annotations

import pytest

from sdm_ray.data.names import positions, spans


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
    assert positions(offsets, (5, -1), text) == (2, 3), "a word of two tokens"
    assert positions(offsets, (0, -1), text) == (1, -1), "a word of one token"
    assert positions(offsets, (30, -1), text) == (-1, -1), "it was cut off"
