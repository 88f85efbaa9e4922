"""Settings that a config from somebody else's sweep must not control: cache folder and tracking server.

`sdm-ray best` writes the cache folder and MLflow address of its sweep into the config, for trainings on that machine.
In a file from somebody else they could name a cache with forged entries, or a server that would receive your token.
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
    """The settings that are used, with a sentence for each one that is ignored.

    The cache folder and the tracking address of a config that came from a sweep are used if the user names them, or if
    that sweep is in `runs/` here and has the same ones.

    Args:
        settings: settings of a file.
        overrides: the user's `PATH=VALUE` overrides.
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
    """Refuse a server that only a sweep's folder names, unless that folder is in `runs/` here.

    Args:
        folder: a sweep's folder.
        uri: the tracking address in its settings.

    Raises:
        UsageError: if the server is refused.
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
    """Folder in `runs/` of the sweep that a config came from; None if it is not there."""
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
