"""`sdm-ray init`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from rich.markup import escape

from sdm_ray.cli.progress import console
from sdm_ray.config import DataSettings, SweepSettings, load_settings
from sdm_ray.config.starter import sweep_yaml
from sdm_ray.config.trial import RuntimeSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.files import atomic_path, write_bytes

ENCODER = "google/bert_uncased_L-2_H-128_A-2"
"""Default encoder: BERT-Tiny, which a laptop can train."""


def run(
    data: str, text: str, desired: str, harmful: str, *, encoder: str | None, out: Path | None, force: bool
) -> None:
    """Look at data and encoder, and write a sweep file that runs."""
    if data in ("synthetic", "regression"):
        raise UsageError(f"DATA {data!r} has a sweep file of its own (sweeps/); name a file, a folder or a hub id")
    name = _name(data)
    path = out or Path(f"{name}.yaml")
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; name the file to write, for example {path / f'{name}.yaml'}")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; add --force to replace it, or name another file with --out")
    from sdm_ray.data.look import look_at
    from sdm_ray.sweep.search.check import check_sweep
    from sdm_ray.sweep.view.live import clock

    look = look_at(DataSettings(source=data, text_column=text, desired_column=desired, harmful_column=harmful))
    import torch

    from sdm_ray.sweep.cluster.connection import num_fitting
    from sdm_ray.trial.starter import TIMED_TEXTS, estimate, make_starter

    arguments = ["sdm-ray", "init", data, "--text", text, "--desired", desired, "--harmful", harmful]
    command = shlex.join([*arguments, *([] if encoder is None else ["--encoder", encoder])])
    cache_dir = RuntimeSettings().cache_folder()
    starter, trunk = make_starter(look, encoder or ENCODER, name=name, command=command, cache_dir=cache_dir)
    with atomic_path(path) as temporary:
        write_bytes(temporary, sweep_yaml(starter).encode())
        settings = load_settings(SweepSettings, temporary)
        check_sweep(settings)
    for key in ("data", "splits", "length", "encoder"):
        console.print(f"{key:8}{escape(starter.remarks[key])}", soft_wrap=True)
    num_at_once = num_fitting(settings.resources, {"CPU": _num_cpus(), "GPU": float(torch.cuda.device_count())})
    found = estimate(settings, trunk, look.counts["attacker_val"] + look.counts["test"], num_at_once)
    console.print(
        f"time    about {clock(found.seconds)} for {len(settings.references)} references and "
        f"{settings.search.num_trials} trials, {num_at_once} at once: an estimate from a few training steps "
        f"({found.step_seconds * 1e3:.0f} ms for {TIMED_TEXTS} texts)",
        soft_wrap=True,
    )
    console.print(f"wrote   {escape(str(path))}", soft_wrap=True)
    console.print(f"next    sdm-ray sweep {escape(shlex.quote(str(path)))}", soft_wrap=True)


def _name(data: str) -> str:
    """Name of the sweep from that of its data, valid as a folder name."""
    stem = Path(data.rstrip("/")).expanduser().name.split(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "sweep"


def _num_cpus() -> float:
    import os

    return float(os.cpu_count() or 1)
