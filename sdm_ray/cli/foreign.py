"""What a config from somebody else's sweep may not steer: where is read from, written to and sent to.

`sdm-ray best` keeps the cache folder and the MLflow of its sweep in the config, for trainings beside it. From somebody
else the same file would choose a folder whose entries are believed, or a server that gets your token.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sdm_ray.cli.progress import say
from sdm_ray.config import Origin, SweepSettings, TrialSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import is_file
from sdm_ray.sweep.records.folder import begun_settings
from sdm_ray.sweep.search.location import SETTINGS
from sdm_ray.tracking.address import sweep_id_file
from sdm_ray.tracking.place import choose_place, without_password

RUNS = Path("runs")


def own_settings(settings: TrialSettings, overrides: Iterable[str]) -> TrialSettings:
    """Settings as they are obeyed, with a sentence for each that is not.

    The cache folder and the tracking address of a config that came from a sweep are obeyed where the person names them,
    and where that sweep lies in `runs/` here and has the same ones.

    Args:
        settings: of a file.
        overrides: `PATH=VALUE` by the person.
    """
    origin = settings.origin
    if origin is None:
        return settings
    named = {text.partition("=")[0].strip() for text in overrides}
    folder = _folder(origin)
    sweep = None if folder is None else _read(folder)
    cache = settings.runtime.cache_dir
    own_cache = None if sweep is None else sweep.trial.runtime.cache_dir
    if cache not in (None, own_cache) and not named & {"runtime", "runtime.cache_dir"}:
        _tell(origin, "runtime.cache_dir", str(cache), f"--set runtime.cache_dir={cache}")
        runtime = settings.runtime.model_copy(update={"cache_dir": None})
        settings = settings.model_copy(update={"runtime": runtime})
    uri = origin.tracking_uri
    own_uri = None if folder is None or sweep is None else without_password(choose_place(sweep.tracking, folder).uri)
    if uri not in (None, own_uri) and not named & {"origin", "origin.tracking_uri"}:
        _tell(origin, "origin.tracking_uri", str(uri), f"--tracking-uri {uri}")
        settings = settings.model_copy(update={"origin": origin.model_copy(update={"tracking_uri": None})})
    return settings


def check_address(folder: Path, uri: str | None) -> None:
    """Refuse to send anything to a server that a sweep's folder alone names, unless it lies in `runs/` here.

    Args:
        folder: of a sweep.
        uri: the tracking address in its settings.

    Raises:
        UsageError: for such a server.
    """
    if uri is None or not uri.startswith(("http://", "https://")):
        return
    if not folder.resolve().is_relative_to(RUNS.resolve()):
        shown = without_password(uri)
        raise UsageError(
            f"{folder / SETTINGS} names the server {shown}, and the folder does not lie in {RUNS}/ here, so it may be "
            f"somebody else's; where you trust it, add --tracking-uri {shown}"
        )


def _folder(origin: Origin) -> Path | None:
    """The folder in `runs/` of the very sweep that a config came from; None where there is none."""
    folder = RUNS / origin.sweep
    if len(Path(origin.sweep).parts) != 1 or origin.sweep in (".", "..") or not is_file(folder / SETTINGS):
        return None
    mark = sweep_id_file(folder)
    known = mark.read_text(encoding="utf-8").strip() if is_file(mark) else None
    return folder if known == origin.sweep_id else None


def _read(folder: Path) -> SweepSettings | None:
    try:
        return begun_settings(folder)
    except (UsageError, RunError):
        return None


def _tell(origin: Origin, setting: str, value: str, option: str) -> None:
    say(
        f"{setting} of the config ({value}) is not used: it came from the sweep {origin.sweep!r}, which does not lie "
        f"in {RUNS}/ here with the same; where you trust it, add {option}"
    )
