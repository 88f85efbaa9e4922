"""Portfolio of winners of earlier searches, tried first on the next model: a versioned JSON file, strongest first.

    {"version": 1, "name": "...", "entries": [{"family": "rescale", "num_examples": 50, "accuracy": 0.81,
     "model": "<digest>", "attacker": {"learning_rate": 0.001, "num_steps": 120, ...}}, ...]}

`accuracy` is on attacker-validation, so that test data never select an attacker. `attacker` has fields of
`families.base.Attacker`; omitted fields have their defaults.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sdm_ray.attack.families import FAMILIES
from sdm_ray.attack.families.base import RATE_FACTORS, Attacker, Facts, Trains
from sdm_ray.attack.families.token_probe import MISSING, READS_NAMES
from sdm_ray.config.attack import AttackSchedule
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import is_file, read_json, write_json

if TYPE_CHECKING:
    from sdm_ray.attack.report import AttackReport

VERSION = 1
"""Version of the file's layout."""
MAX_BYTES, MAX_ENTRIES = 16_000_000, 10_000
"""Limits of a file, because a portfolio may come from somebody else."""
MOST = {
    "num_steps": 100_000, "batch_size": 100_000, "depth": 10_000, "rank": 65_536, "layer": 10_000, "position": 100_000,
    "learning_rate": 1e6, "amount": 1e9, "amounts": 1e9,
}  # fmt: skip
"""Largest magnitude of an attacker's numbers, far above those of any search."""
LEAST = {"num_steps": 0, "batch_size": 1, "depth": 0, "rank": 0, "layer": -2, "position": 0, "learning_rate": 0.0}
MAX_EXAMPLES, MAX_ITEMS = 10_000_000, 100
NAMES: dict[str, tuple[str, ...]] = {
    "trains": get_args(Trains), "optimizer": tuple(RATE_FACTORS), "schedule": get_args(AttackSchedule),
}  # fmt: skip
"""Allowed values of some fields; other text fields are names that the engine looks up."""
_WORD = re.compile(r"[\w.+-]{0,100}")
IDENTITY = ("family", "num_examples", "phase", "repeat", "trial", "seed_index", "attempt")
"""Fields of an attacker that are not hyper-parameters."""
HYPER_PARAMETERS = {field.name: field for field in dataclasses.fields(Attacker) if field.name not in IDENTITY}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One winner."""

    attacker: Attacker
    """Its hyper-parameters, family and n."""
    accuracy: float
    """Balanced accuracy on attacker-validation, mean over its re-runs."""
    model: str
    """Digest of the model on which it won."""


@dataclasses.dataclass(frozen=True)
class Portfolio:
    """Winners of earlier searches."""

    name: str
    """Its name."""
    entries: tuple[Entry, ...]
    """Strongest first."""

    def content(self) -> list[dict[str, Any]]:
        """Its entries in the file's format."""
        return [_plain(entry) for entry in self.entries]

    def attackers(self, family: str, num_examples: int, facts: Facts) -> list[Attacker]:
        """Attackers of a family for an n and a model, strongest first, without repeated hyper-parameters."""
        fitting = [
            entry.attacker
            for entry in self.entries
            if (entry.attacker.family, entry.attacker.num_examples) == (family, num_examples)
            and _fits(entry.attacker, facts)
        ]
        return list(dict.fromkeys(fitting))


NOTHING = Portfolio("", ())
"""The empty portfolio."""


def read_portfolio(path: str | Path | None) -> Portfolio:
    """Read a portfolio; None gives an empty one.

    Raises:
        UsageError: for an unreadable file, another version, or an entry that is not an attacker.
    """
    if path is None:
        return NOTHING
    where = f"attack.portfolio: {path}"
    if is_file(Path(path)) and Path(path).stat().st_size > MAX_BYTES:
        raise UsageError(f"{where} has {Path(path).stat().st_size} bytes, at most {MAX_BYTES} are read; shorten it")
    try:
        value = read_json(Path(path))
    except RunError as error:
        raise UsageError(f"attack.portfolio: {error}; name a file that `sdm-ray attack --add-winners` wrote") from None
    if not isinstance(value, dict) or value.get("version") != VERSION:
        found = value.get("version") if isinstance(value, dict) else None
        raise UsageError(f"{where} is a portfolio of version {found}, expected {VERSION}; write it anew")
    entries = value.get("entries")
    if not isinstance(entries, list):
        raise UsageError(f"{where} has no list of entries; write it anew")
    if len(entries) > MAX_ENTRIES:
        raise UsageError(f"{where} has {len(entries)} entries, at most {MAX_ENTRIES} are read; shorten it")
    read = [_entry(entry, f"{where}, entry {index}") for index, entry in enumerate(entries)]
    return Portfolio(str(value.get("name", "")), tuple(sorted(read, key=lambda entry: -entry.accuracy)))


def add_winners(path: Path, report: AttackReport, model: str) -> int:
    """Add the winner of every family and n to a portfolio; a missing file is created.

    Args:
        path: the file.
        report: report of an attack.
        model: digest of the attacked weights.

    Returns:
        Number of added winners; winners that the file already has for this model are not added.

    Raises:
        UsageError: if the file is not a portfolio.
        RunError: if it cannot be written.
    """
    known = read_portfolio(path) if path.exists() else Portfolio(path.stem, ())
    winners = [(cell, cell.winner) for cell in report.family_cells if cell.valid and cell.winner is not None]
    fresh = [Entry(_bare(winner), cell.val_accuracy, model) for cell, winner in winners]
    old = {(entry.attacker, entry.model) for entry in known.entries}
    fresh = [entry for entry in fresh if (entry.attacker, model) not in old]
    entries = sorted((*known.entries, *fresh), key=lambda entry: -entry.accuracy)
    write_json(path, {"version": VERSION, "name": known.name, "entries": Portfolio("", tuple(entries)).content()})
    return len(fresh)


def _bare(winner: Attacker) -> Attacker:
    values = {name: getattr(winner, name) for name in HYPER_PARAMETERS}
    return Attacker(family=winner.family, num_examples=winner.num_examples, **values)


def _plain(entry: Entry) -> dict[str, Any]:
    attacker = entry.attacker
    changed = {
        name: getattr(attacker, name)
        for name, field in HYPER_PARAMETERS.items()
        if getattr(attacker, name) != field.default
    }
    return {
        "family": attacker.family, "num_examples": attacker.num_examples, "accuracy": entry.accuracy,
        "model": entry.model, "attacker": changed,
    }  # fmt: skip


def _entry(value: Any, where: str) -> Entry:
    try:
        family, size, accuracy = value["family"], value["num_examples"], float(value["accuracy"])
        given = dict(value["attacker"])
        unknown = [name for name in given if name not in HYPER_PARAMETERS]
        if unknown:
            raise UsageError(f"{where} has an attacker with {unknown[0]!r}; known: {', '.join(HYPER_PARAMETERS)}")
        wrong = [name for name, item in given.items() if not _is_like(item, HYPER_PARAMETERS[name].default)]
        if wrong or not isinstance(size, int):
            name, item = (wrong[0], given[wrong[0]]) if wrong else ("num_examples", size)
            raise UsageError(f"{where} has {item!r} for {name}, which is of another type; mend it or take it out")
        _check_bounds(given | {"num_examples": size, "accuracy": accuracy}, where)
        attacker = Attacker(family=family, num_examples=size, **given)
        model = str(value["model"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{where} is no winner of a search ({error!r}); mend it or take it out") from None
    if not isinstance(family, str) or family not in FAMILIES:
        raise UsageError(f"{where} is of the family {family!r}, which is not known; known: {', '.join(FAMILIES)}")
    return Entry(attacker, accuracy, model)


def _check_bounds(values: dict[str, Any], where: str) -> None:
    """Refuse numbers above `MOST` and text that a field does not allow."""
    least, most = LEAST | {"num_examples": 1, "accuracy": 0.0}, MOST | {"num_examples": MAX_EXAMPLES, "accuracy": 1.0}
    for name, value in values.items():
        if isinstance(value, str):
            if value not in NAMES[name] if name in NAMES else not _WORD.fullmatch(value):
                known = f"; known: {', '.join(NAMES[name])}" if name in NAMES else ""
                raise UsageError(f"{where} has {value[:60]!r} for {name}{known}; mend it or take it out")
        elif not isinstance(value, bool):
            items = value if isinstance(value, list | tuple) else [value]
            low, high = least.get(name, -most[name]), most[name]
            if len(items) > MAX_ITEMS or not all(low <= item <= high for item in items):
                shown = str(value) if len(str(value)) <= 60 else f"{str(value)[:57]}..."
                raise UsageError(
                    f"{where} has {shown} for {name}, which must lie from {low:g} to {high:g}; mend it or take it out"
                )


def _is_like(value: Any, default: Any) -> bool:
    """Whether a JSON value has the type of a field with this default."""
    if isinstance(default, tuple):
        return isinstance(value, list) and all(isinstance(item, int | float) for item in value)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def _fits(attacker: Attacker, facts: Facts) -> bool:
    """Whether a model has the parts that an attacker reads and trains."""
    return (
        attacker.layer < max(facts.num_hidden_states, 0)
        and (facts.knows_positions or attacker.reading not in READS_NAMES)
        and (facts.misses_directions or attacker.reading != MISSING)
        and (attacker.reading != "interaction" or attacker.position < facts.num_hidden_states)
        and attacker.depth < facts.num_depths
        and (facts.has_own_head or not attacker.own_head)
        and attacker.batch_size <= attacker.num_examples
    )
