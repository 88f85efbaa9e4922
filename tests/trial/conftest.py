"""Trials of these tests end with an audit whose readers take few steps: what they can read is tested in `attack`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.token_fits import few_steps


@pytest.fixture(scope="package", autouse=True)
def _short_readers() -> Iterator[None]:
    with few_steps():
        yield
