"""Read datasets from the Hugging Face hub, or from its caches, with `datasets`."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.hub import brief, cached_only, is_away, quiet_hub
from sdm_ray.data.readers import ClassNames, Source, add_class_names, check_columns

if TYPE_CHECKING:
    import datasets

_COMMIT = re.compile("[0-9a-f]{40}")


def read_hub(name: str, revision: str | None, columns: dict[str, str]) -> Source:
    """Read columns from all splits of a hub dataset and concatenate them; from the cache if the hub is unreachable.

    Raises:
        UsageError: for a missing column, or a dataset that needs the name of a configuration.
        RunError: if the hub cannot be reached or does not have the dataset, or if the cache has another revision.
    """
    import datasets
    from huggingface_hub import constants

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    away = is_away()
    try:
        with quiet_hub(), cached_only() if away else nullcontext():
            loaded = datasets.load_dataset(name, revision=revision)
    except ValueError as error:
        if "BuilderConfig" in str(error) or "Config name" in str(error):
            raise UsageError(
                f"data.source {name!r}: {brief(error)}; point data.source at a local file instead"
            ) from None
        raise _unreachable(name, revision) from None
    except Exception:  # network, hub and script errors have no common base
        raise _unreachable(name, revision) from None
    finally:
        if shown:
            datasets.enable_progress_bars()
    if revision is not None:
        _check_revision(name, revision, loaded, from_cache=away or constants.HF_HUB_OFFLINE)
    tables: list[pa.Table] = []
    class_names: ClassNames = {}
    for part in loaded.values():
        check_columns(name, part.column_names, columns)
        kept = part.select_columns(sorted(set(columns.values())))
        tables.append(kept.with_format("arrow")[:].replace_schema_metadata(None))
        named = {key: value.names for key, value in kept.features.items() if hasattr(value, "names")}
        add_class_names(class_names, named, columns, f"a split of {name}")
    return Source(pa.concat_tables(tables, promote_options="permissive"), class_names)


def _check_revision(name: str, revision: str, loaded: datasets.DatasetDict, *, from_cache: bool) -> None:
    """Raise a `RunError` if a dataset may have another revision: without the hub, `datasets` takes the cache's latest.

    `datasets` keeps what it has prepared in a folder that is called like the commit.
    """
    from huggingface_hub import constants

    commits = {Path(file["filename"]).parent.name for part in loaded.values() for file in part.cache_files}
    wanted: str | None = revision
    if not _COMMIT.fullmatch(revision):
        if not from_cache:
            return
        reference = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "refs" / revision
        wanted = reference.read_text(encoding="utf-8").strip() if reference.is_file() else None
    if commits and commits != {wanted}:
        raise RunError(
            f"dataset {name!r}: revision {revision!r} is not in the cache, which has {', '.join(sorted(commits))}, and "
            "the Hugging Face hub could not be reached; set data.revision to the commit that is there, or try again "
            "with the hub"
        )


def _unreachable(name: str, revision: str | None) -> RunError:
    where = f"{name!r} (revision {revision!r})" if revision else repr(name)
    return RunError(
        f"dataset {where} could not be had from the Hugging Face hub (no network, or no such dataset); "
        "point data.source at a local .parquet, .csv, .jsonl or .arrow file"
    )
