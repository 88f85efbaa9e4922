"""Values as plain JSON, where they are kept, and how two of them are compared."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = Path(__file__).parent / "values.json"
COMPACT = (",", ":")
PREFIX = "sha256:"
"""Begins a digest of floating-point numbers, which another machine need not share."""


def machine() -> dict[str, str]:
    """What the last bits of a result depend on."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    first = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    packages = {name: version(name) for name in ("torch", "numpy", "optuna", "transformers")}
    return {
        "cpu": " ".join(first.get(name, "") for name in ("model name", "cpu family", "model", "stepping")),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **packages,
    }


def plain(value: Any) -> Any:
    """JSON of any value: tensors are summed up, dataclasses and named tuples become objects, NaN and inf text."""
    if isinstance(value, Tensor):
        return of_tensor(value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str) or value is None:
        return None if value is None else str(value)
    return value


def of_tensor(value: Tensor) -> dict[str, Any]:
    """Sum and norm of a tensor, and a digest of its shape and its bytes."""
    value = value.detach().contiguous()
    wide = value.double()
    content = str(tuple(value.shape)).encode() + value.numpy().tobytes()
    return {"sum": wide.sum().item(), "norm": wide.norm().item(), "bytes": of_bytes(content)}


def of_bytes(value: bytes) -> str:
    """A digest of bytes."""
    return PREFIX + hashlib.sha256(value).hexdigest()[:16]


def of_values(value: Any) -> str:
    """A digest of any plain value, to the last bit of its numbers."""
    return of_bytes(json.dumps(plain(value), sort_keys=True).encode())


def load() -> dict[str, Any]:
    """The recorded file: `machine`, and `values` by area and case."""
    recorded: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return recorded


def save(recorded: dict[str, Any]) -> None:
    """Write the file, a line a case."""
    areas = []
    for area, cases in sorted(recorded["values"].items()):
        lines = [
            f"  {json.dumps(name)}: {json.dumps(value, sort_keys=True, separators=COMPACT)}"
            for name, value in sorted(cases.items())
        ]
        areas.append(f" {json.dumps(area)}: {{\n" + ",\n".join(lines) + "\n }")
    FILE.write_text(
        f'{{"machine": {json.dumps(recorded["machine"])},\n"values": {{\n' + ",\n".join(areas) + "\n}}\n",
        encoding="utf-8",
    )


def differences(ours: Any, theirs: Any, tolerance: tuple[float, float] | None, path: str = "") -> Iterator[str]:
    """Where two plain values differ: everywhere without a tolerance, else beyond (relative, absolute) of it."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted(ours.keys() | theirs.keys()):
            if name in ours and name in theirs:
                yield from differences(ours[name], theirs[name], tolerance, f"{path}/{name}")
            else:
                yield f"{path}/{name} is only {'here' if name in ours else 'in the record'}"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (left, right) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(left, right, tolerance, f"{path}/{index}")
    elif not _same(ours, theirs, tolerance):
        yield f"{path}: {ours!r}, recorded {theirs!r}"


def _same(ours: Any, theirs: Any, tolerance: tuple[float, float] | None) -> bool:
    if tolerance is None:
        return type(ours) is type(theirs) and bool(ours == theirs)
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=tolerance[0], abs_tol=tolerance[1])
    digests = [isinstance(value, str) and value.startswith(PREFIX) for value in (ours, theirs)]
    return all(digests) or bool(ours == theirs)
