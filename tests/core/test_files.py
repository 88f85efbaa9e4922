"""JSON that every reader takes."""

from __future__ import annotations

import json
import math

import pytest

from sdm_ray.core.files import nan_for_null, null_for_nan


def test_numbers_that_json_lacks_are_null_at_any_depth() -> None:
    values = {"a": math.nan, "b": [1.5, -math.inf, (math.inf, 2)], "c": {"d": math.nan, "e": "nan"}, "f": True}
    plain = null_for_nan(values)
    assert plain == {"a": None, "b": [1.5, None, [None, 2]], "c": {"d": None, "e": "nan"}, "f": True}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_null_is_read_as_nan() -> None:
    assert nan_for_null({"a": None, "b": 0.0}) == pytest.approx({"a": math.nan, "b": 0.0}, nan_ok=True)
