"""Hub ids, messages and silence: what data and encoders share about the Hugging Face hub."""

from __future__ import annotations

import logging

import pytest

from sdm_ray.core.hub import brief, is_hub_id, quiet_hub


@pytest.mark.parametrize(
    ("name", "is_id", "is_bare_id"),
    [
        ("owner/name", True, True),
        ("o-w.ner/na_me-2", True, True),
        ("bert-base-uncased", False, True),
        ("a/b/c", False, False),
        ("two words", False, False),
        ("owner/two words", False, False),
        ("", False, False),
    ],
)
def test_the_form_of_an_id(name: str, is_id: bool, is_bare_id: bool) -> None:
    assert is_hub_id(name) is is_id
    assert is_hub_id(name, bare=True) is is_bare_id


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("one line", "one line"),
        ("It failed.\nAnd this is why.", "It failed"),
        ("torch 2.13 is needed. Upgrade.", "torch 2.13 is needed"),
        ("", "ValueError"),
        ("x" * 400, "x" * 300),
    ],
)
def test_the_first_sentence_of_a_message(message: str, expected: str) -> None:
    assert brief(ValueError(message)) == expected


def test_the_log_speaks_again_afterwards() -> None:
    log = logging.getLogger("huggingface_hub")
    before = log.level
    with quiet_hub():
        assert not log.isEnabledFor(logging.ERROR)
    assert log.level == before

    def fail() -> None:
        with quiet_hub():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert log.level == before
