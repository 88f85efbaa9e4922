"""A sweep's folder: locked by one driver at a time, and resumed only with the same settings.

`Tuner.restore` is not used: it resumes from pickles that Tune writes periodically, so progress since the last one is
repeated or lost, and a pickle requires the versions that wrote it. Here each trial is written to `trials.jsonl` before
it starts and when it ends, and its own folder holds its checkpoints. A resumed sweep is a new Tune run of exactly the
trials that have not ended, with the same ids, folders and Optuna trials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdm_ray.config import SweepSettings, load_settings, read_document, to_yaml
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import is_file, remove, user_path, write_text
from sdm_ray.core.lock import FolderLock
from sdm_ray.core.suggest import did_you_mean
from sdm_ray.models.pooling import Chosen, choose_pooling
from sdm_ray.sweep.cluster.mirror import Mirror, sweep_uri
from sdm_ray.sweep.search.location import SETTINGS, sweep_folder
from sdm_ray.sweep.state.inputs import inputs_problem
from sdm_ray.sweep.state.ledger import FILE as LEDGER
from sdm_ray.sweep.state.ledger import read_record

LOCK = "sweep.lock"
RESUME_HINT = "run the same command with --resume to go on"

MAY_CHANGE = (
    "output_dir", "resources", "tracking", "trial.runtime",
    "search.num_trials", "search.max_hours", "search.max_gpu_hours",
)  # fmt: skip
"""Settings that may change when a sweep is resumed: where it runs, and how long (trials that have begun stay)."""

_ENCODER = {"encoder", "encoder.name", "encoder.revision"}
"""Settings that identify the encoder."""
MAY_GROW = ("references", "variants", "search.num_seeds")
"""Settings that may grow in a sweep without a search: references, variants and seeds may be added, none removed or
changed."""


@contextmanager
def claimed_folder(settings: SweepSettings, *, resume: bool, inputs: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Create or resume the sweep's folder, and lock it for the duration of the block.

    Args:
        settings: the sweep's settings.
        resume: resume the sweep in the folder.
        inputs: digests of the current data and encoder, if known.

    Raises:
        UsageError: if the folder holds a sweep and `resume` is off, if there is nothing to resume, or if settings, data
            or encoder have changed.
        RunError: if another driver holds the lock, or the folder cannot be written.
    """
    folder = sweep_folder(settings).resolve()
    uri = sweep_uri(settings)
    if uri is not None:
        mirror = Mirror(folder, uri, recursive=False)
        if resume and not (folder / SETTINGS).exists():
            mirror.pull()
        elif not resume and mirror.exists():
            raise UsageError(f"{uri} already holds a sweep; add --resume to go on with it, or --set name=...")
    exists = (folder / LEDGER).exists() or (folder / SETTINGS).exists()
    if exists and not resume:
        raise UsageError(
            f"{folder} already holds a sweep; add --resume to go on with it, or --set name=... to start another"
        )
    if resume and not (folder / SETTINGS).exists():
        raise UsageError(f"{folder} holds no sweep to resume; leave --resume out to start it")
    try:
        (folder / "trials").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {folder}: {error.strerror or error}; choose another output_dir") from None
    lock = FolderLock(folder / LOCK)
    lock.acquire()
    try:
        if resume:
            check_unchanged(begun_settings(folder), settings)
            problem = inputs_problem(read_record(folder, around=True).entries.values(), inputs or {})
            if problem is not None:
                raise UsageError(
                    f"{folder} holds results of other inputs: {problem}; restore what was there, or start another "
                    "sweep with --fork"
                )
            remove(folder / "tune")
        write_text(folder / SETTINGS, to_yaml(settings), sync=True)
        yield folder
    finally:
        lock.release()


def settle_pooling(settings: SweepSettings, *, resume: bool) -> tuple[SweepSettings, str | None]:
    """Resolve `trial.encoder.pooling: auto`; returns the settings, and a message about the choice or None.

    A resumed sweep keeps its pooling. If the encoder itself is searched or varied, each trial resolves its own.
    """
    encoder = settings.trial.encoder
    varied = [*settings.space, *(path for changes in settings.variants.values() for path in changes)]
    if encoder.pooling != "auto" or _ENCODER.intersection(varied):
        return settings, None
    begun = sweep_folder(settings) / SETTINGS
    chosen = choose_pooling(encoder)
    if resume and begun.exists():
        before = begun_settings(begun.parent).trial.encoder.pooling
        if before != "auto":
            chosen = Chosen(encoder.model_copy(update={"pooling": before}), None)
    trial = settings.trial.model_copy(update={"encoder": chosen.encoder})
    return settings.model_copy(update={"trial": trial}), chosen.note


def begun_settings(folder: Path) -> SweepSettings:
    """Load the settings of the sweep in a folder.

    Raises:
        UsageError: if they cannot be read, or the file is empty, for example after a full disk.
    """
    path = folder / SETTINGS
    if not read_document(path):
        raise UsageError(
            f"{path} is empty, so nothing says which sweep lies there; restore it (its run in MLflow keeps a copy), or "
            "start another sweep with --set name=..."
        )
    return load_settings(SweepSettings, path)


def check_unchanged(before: SweepSettings, now: SweepSettings) -> None:
    """Check that a resumed sweep has the same settings, except for those that may change or grow.

    Raises:
        UsageError: with every other setting that differs, and both values.
    """
    problems = [
        text
        for path, text in differences(before, now).items()
        if not _is_under(path, MAY_CHANGE) and not (_is_under(path, MAY_GROW) and _only_grows(before, now))
    ]
    if problems:
        raise UsageError(
            f"the sweep has changed since it began: {'; '.join(problems)}; undo that, or start another with --fork"
        )


def differences(before: SweepSettings, now: SweepSettings) -> dict[str, str]:
    """Phrase with both values of each setting that differs, by dotted path."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    changed = [path for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)]
    return {path: f"{path} was {old.get(path)!r}, is {new.get(path)!r}" for path in changed}


def _is_under(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root + ".") for root in roots)


def _only_grows(before: SweepSettings, now: SweepSettings) -> bool:
    searched = before.search.num_trials or now.search.num_trials
    kept = set(before.references) <= set(now.references) and before.variants == {
        name: now.variants.get(name) for name in before.variants
    }
    return not searched and kept and now.search.num_seeds >= before.search.num_seeds


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def find_sweep(name: str | Path, *, output_dir: str | Path = "runs") -> Path:
    """Find the folder of a sweep, given as a path or by its name in `output_dir`.

    Raises:
        UsageError: if there is none; suggests similar names.
    """
    output_dir = user_path(output_dir, "output_dir")
    for folder in (user_path(name, "the sweep"), output_dir / name):
        if is_file(folder / SETTINGS):
            return folder
    if is_file(Path(name)):
        folder = Path(name).parent
        hint = (
            f"write {folder}" if Path(name) == folder / SETTINGS else f"it lies in {output_dir} after `sdm-ray sweep`"
        )
        raise UsageError(f"{name} is a file, and a sweep's folder or name is asked for; {hint}")
    known = sorted(path.parent.name for path in Path(output_dir).glob("*/sweep.yaml"))
    listed = f"{output_dir} holds: {', '.join(known)}" if known else f"{output_dir} holds no sweep"
    hint = did_you_mean(str(name), known, otherwise=listed)
    raise UsageError(f"no sweep {str(name)!r}: neither a sweep's folder nor a name below {output_dir}; {hint}")
