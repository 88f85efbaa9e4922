"""Tests, in folders that mirror the package; what they share lies in `tests/fakes`."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The repository."""
