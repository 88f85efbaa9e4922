"""Cached attack reports on references that trials share: random initialisation, scratch, the public encoder."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sdm_ray.attack.families import own_families, token_probe
from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.attack.portfolio import read_portfolio
from sdm_ray.attack.protocol import RunnerFactory, attack_model
from sdm_ray.attack.report import FORMAT_VERSION, AttackReport
from sdm_ray.config import AttackSettings, EncoderSettings, digest
from sdm_ray.core.cache import ASKED, SharedCache, is_asked, look_up, offer
from sdm_ray.core.errors import RunError
from sdm_ray.core.files import read_json, write_json
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Params, Task
from sdm_ray.data.interface import AttackDataset
from sdm_ray.models.encoder import Trunk
from sdm_ray.models.trunk import params_digest
from sdm_ray.trial.cached import built_once
from sdm_ray.trial.release import Release, knowledge_of, own_knowledge
from sdm_ray.trial.scratch import Scratch
from sdm_ray.trial.workspace import Initialisation, Workspace, trunk_params

Build = Callable[[], Generator[Progress, None, AttackReport]]


class Reference(NamedTuple):
    """A model that several trials are compared with."""

    name: str
    """`random`, `scratch` or `pretrained`."""
    trunk: Trunk
    params: Params
    digest: str
    """Hash of architecture and weights."""
    knowledge: Knowledge
    """Knowledge of its attacker."""

    @classmethod
    def untrained(
        cls,
        work: Workspace,
        encoder: EncoderSettings,
        initialisation: Initialisation,
        settings: AttackSettings,
        seed: int,
    ) -> Reference:
        """Reference without training.

        The attacker of random initialisation does not get the public encoder; otherwise it would be no floor.
        """
        trunk = work.trunk(encoder, initialisation, seed)
        knowledge = own_knowledge(trunk)
        if initialisation == "pretrained":
            as_public = Release(trunk=trunk, params=trunk_params(trunk), encoder=encoder)
            knowledge = knowledge_of(work, as_public, settings)
        return cls(initialisation, trunk, trunk_params(trunk), trunk.digest(), knowledge)

    @classmethod
    def from_scratch(cls, scratch: Scratch) -> Reference:
        """Reference from random initialisation trained on the desired task."""
        identity = digest([scratch.trunk.digest(), params_digest(scratch.params)])
        return cls("scratch", scratch.trunk, scratch.params, identity, own_knowledge(scratch.trunk))


def load_report(key: str, cache_dir: Path, shared: SharedCache | None = None) -> AttackReport | None:
    """Cached report of `key`; None if there is no readable one."""
    path = _path(key, cache_dir)
    report = look_up(cache_dir, _entry(path), partial(_read, path, key), shared)
    if report is not None:
        offer(cache_dir, _entry(path), [path], shared)
    return report


def store_report(key: str, cache_dir: Path, report: AttackReport, shared: SharedCache | None = None) -> None:
    """Cache a report under `key`, atomically."""
    path = _path(key, cache_dir)
    write_json(path, report.to_json() | {ASKED: key})
    offer(cache_dir, _entry(path), [path], shared)


def cached_reports(
    builds: Mapping[str, Build], cache_dir: Path, shared: SharedCache | None = None
) -> Generator[Progress, None, dict[str, AttackReport]]:
    """Reports by key: cached ones, and new ones that a single process builds and caches.

    Args:
        builds: generator functions that build the reports, by the content hash of all inputs, which is the file name.
        cache_dir: reports are in its folder `floors`.
        shared: cache entries shared between machines.

    Yields:
        Progress of the builds; stage `wait`, in seconds, while other processes build.
    """
    reports = yield from built_once(
        builds,
        load=lambda key: load_report(key, cache_dir, shared),
        save=lambda key, report: store_report(key, cache_dir, report, shared),
        path=lambda key: _path(key, cache_dir),
    )
    return reports


def reference_reports(
    work: Workspace,
    references: Mapping[str, Reference],
    settings: AttackSettings,
    runner: RunnerFactory | None = None,
    benign: tuple[str, AttackDataset] | None = None,
) -> Generator[Progress, None, dict[str, AttackReport]]:
    """Run the same attack on references, or read its reports from the cache.

    Args:
        work: data, samplers and caches.
        references: references by name.
        settings: settings of the attack.
        runner: factory of the executor of fine-tunes; None runs them in this process.
        benign: name and data of the benign task to learn; None attacks the harmful task.
    """
    keys: dict[str, str] = {}
    builds: dict[str, Build] = {}
    data, task = (work.data, Task.HARMFUL) if benign is None else (benign[1], Task.DESIRED)
    for name, reference in references.items():
        parts: list[Any] = [reference.digest, data.digest, settings.identity(), reference.name]
        parts += [] if benign is None else [benign[0]]
        # The file's content may change under the same name.
        parts += [read_portfolio(settings.portfolio).content()] if settings.portfolio else []
        families = (*settings.families, *settings.benign_families)
        parts += [[token_probe.NAME, token_probe.VERSION]] if token_probe.NAME in families else []
        parts += [own] if (own := own_families(families)) else []
        key = digest(parts)
        keys[name] = key
        builds[key] = partial(
            attack_model,
            reference.trunk,
            reference.params,
            data,
            settings,
            task=task,
            sampler=work.sampler(settings.sampler),
            knowledge=reference.knowledge if benign is None else own_knowledge(reference.trunk),
            runner=runner,
        )
    reports = yield from cached_reports(builds, work.cache_dir, work.context.shared)
    return {name: reports[key] for name, key in keys.items()}


def floor_report(
    work: Workspace,
    encoder: EncoderSettings,
    settings: AttackSettings,
    initialisation: Initialisation,
    seed: int,
    runner: RunnerFactory | None = None,
) -> Generator[Progress, None, AttackReport]:
    """Compute a single report of `floor_reports`."""
    reports = yield from floor_reports(work, {initialisation: encoder}, settings, seed, runner)
    return reports[initialisation]


def floor_reports(
    work: Workspace,
    encoders: Mapping[Initialisation, EncoderSettings],
    settings: AttackSettings,
    seed: int,
    runner: RunnerFactory | None = None,
) -> Generator[Progress, None, dict[Initialisation, AttackReport]]:
    """Run the same attack on untrained encoders, by initialisation: `random` is the floor, `pretrained` the ceiling."""
    references: dict[str, Reference] = {
        name: Reference.untrained(work, encoder, name, settings, seed) for name, encoder in encoders.items()
    }
    reports = yield from reference_reports(work, references, settings, runner)
    return {name: reports[name] for name in encoders}


def _read(path: Path, key: str) -> AttackReport | None:
    """Cached report; None if it is missing, damaged, or made from other inputs."""
    if not path.exists():
        return None
    try:
        value = read_json(path)
        is_ours = not isinstance(value, dict) or is_asked(key, value.pop(ASKED, None))
        return AttackReport.from_json(value) if is_ours else None
    except (RunError, ValueError):
        return None


def _entry(path: Path) -> str:
    """Name of a report in the shared cache."""
    return f"floors/{path.stem}"


def _path(key: str, cache_dir: Path) -> Path:
    return cache_dir / "floors" / f"{key}-v{FORMAT_VERSION}.json"
