"""Libraries of the compiler's cache that a kill cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdm_ray.meta.inner import kernels
from sdm_ray.meta.inner.kernels import mended, remove_cut_off


class Call:
    """Fails as torch's compiler does while one of its libraries is cut off."""

    def __init__(self, libraries: list[Path], said: str = "file too short") -> None:
        self.libraries, self.said, self.count = libraries, said, 0

    def __call__(self, value: int) -> int:
        self.count += 1
        for path in self.libraries:
            if path.exists():
                try:
                    raise ImportError(f"{path}: {self.said}")
                except ImportError as error:
                    raise RuntimeError("InductorError") from error
        return value + 1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(kernels.torch._dynamo, "reset", lambda: None)
    (tmp_path / "cache" / "ab").mkdir(parents=True)
    return tmp_path / "cache"


def test_cut_off_libraries_are_removed_and_compiled_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut = [cache / "ab" / f"c{index}.main.so" for index in range(2)]
    cut[0].write_bytes(b"")
    cut[1].write_bytes(b"\x7fELF and no more")
    call = Call(cut)
    assert mended(call, 1) == 2
    assert call.count == 3
    assert not any(path.exists() for path in cut)
    assert [str(path) in record.getMessage() for path, record in zip(cut, caplog.records, strict=True)] == [True] * 2


def test_nothing_else_is_removed(cache: Path, tmp_path: Path) -> None:
    """A whole library that lacks a symbol, and one of another folder."""
    whole, foreign = cache / "ab" / "c.so", tmp_path / "other.so"
    whole.write_bytes(b"\x7fELF")
    foreign.write_bytes(b"")
    for call in (Call([whole], "undefined symbol: f"), Call([foreign])):
        with pytest.raises(RuntimeError, match="InductorError"):
            mended(call, 1)
        assert call.count == 1
    assert whole.exists()
    assert foreign.exists()
    assert remove_cut_off(ValueError("no library")) is None
