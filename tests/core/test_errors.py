"""Several things that are wrong are one error."""

from __future__ import annotations

import pytest

from sdm_ray.core.errors import Faults, UsageError


def refuse(message: str | None) -> None:
    if message is not None:
        raise UsageError(message)


def test_all_faults_are_heard_of_once_and_one_is_as_it_was() -> None:
    faults = Faults()
    assert faults.check(refuse, None)
    faults.refuse()
    assert not faults.check(refuse, "one")
    with pytest.raises(UsageError, match=r"^one$"):
        faults.refuse()
    assert not faults.check(refuse, message="two")
    faults.add("one")
    with pytest.raises(UsageError) as error:
        faults.refuse()
    assert str(error.value) == "2 faults:\n  one\n  two"
