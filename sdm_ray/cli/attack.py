"""`sdm-ray attack`."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.markup import escape

from sdm_ray.cli.console import console, error_console
from sdm_ray.cli.progress import follow
from sdm_ray.cli.tables import attack_table
from sdm_ray.config import EncoderSettings, TrialSettings, content_hash, load_settings, parse_settings
from sdm_ray.types import Metric


def run(model: str, config: Path | None, overrides: tuple[str, ...], out: Path | None) -> None:
    """Attack `model`, its random re-initialisation and its public encoder under one budget; print what came out."""
    from sdm_ray.attack.evaluate import attack_model
    from sdm_ray.evaluate import floor_report, load_trunk_on, open_workspace, release_metrics, trunk_params
    from sdm_ray.export import META, load_exported
    from sdm_ray.files import write_json

    exported = load_exported(model) if (Path(model) / META).is_file() else None
    released = exported.meta.settings if exported is not None and exported.meta is not None else None
    settings = _settings(config, overrides, released)
    public = None if released is None else released.encoder
    encoder = _released_encoder(model, settings, public)
    work = open_workspace(settings.model_copy(update={"encoder": encoder}))
    trunk = load_trunk_on(work, encoder, "pretrained", settings.seed)
    params = trunk_params(trunk)
    head = None if exported is None or exported.head is None else exported.head.to(work.device)
    try:
        report = follow(attack_model(trunk, params, work.data, settings.attack), "released model")
        floor = follow(floor_report(work, encoder, settings.attack, "random", settings.seed), "random initialisation")
        reports = {"released": report, "random": floor}
        if public is not None:
            ceiling = floor_report(work, public, settings.attack, "pretrained", settings.seed)
            reports["pretrained"] = follow(ceiling, "public encoder")
    except KeyboardInterrupt:
        error_console.print("stopped; nothing was written")
        raise typer.Exit(130) from None
    metrics = release_metrics(work, report, floor, trunk=trunk, params=params, desired_head=head)
    folder = out or Path("runs") / f"attack-{content_hash(settings)}"
    report.write_parquet(folder / "attack.parquet")
    report.write_json(folder / "attack.json")
    write_json(folder / "metrics.json", {name: value if value == value else None for name, value in metrics.items()})
    console.print(attack_table(reports))
    console.print(_verdict(metrics, settings))
    console.print(f"every fine-tune: {escape(str(folder / 'attack.parquet'))}", soft_wrap=True)


def _settings(config: Path | None, overrides: tuple[str, ...], released: TrialSettings | None) -> TrialSettings:
    if config is not None:
        return load_settings(TrialSettings, config, overrides)
    document = {} if released is None else released.model_dump(mode="json", exclude={"origin"})
    return parse_settings(TrialSettings, document, overrides)


def _released_encoder(model: str, settings: TrialSettings, public: EncoderSettings | None) -> EncoderSettings:
    pooling = settings.encoder.pooling if public is None else public.pooling
    return EncoderSettings(name=model, pooling=pooling)


def _verdict(metrics: dict[str, float], settings: TrialSettings) -> str:
    """What the numbers allow to be said, and under which budget."""
    attack = settings.attack
    name = str(Metric.REGRET_ACCURACY)
    regret = metrics[name]
    low, high = metrics[Metric.low(name)], metrics[Metric.high(name)]
    if low > 0:
        verdict = "not blocked: these weights give the attacker a head start over random initialisation"
    elif high <= 0:
        verdict = "blocked under this budget: no head start over random initialisation was found"
    else:
        verdict = "undecided: the interval of the head start holds 0"
    return (
        f"{verdict} ({regret:+.3f} accuracy, 95 % interval [{low:+.3f}, {high:+.3f}]). "
        f"Attacker: Adam, full or head only, {attack.num_search_trials} search points and {attack.num_rerun_seeds} "
        f"re-runs at each n, {attack.num_steps_min} to {attack.num_steps_max} steps; nothing else was tried."
    )
