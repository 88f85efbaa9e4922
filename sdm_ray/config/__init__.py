"""Validated, immutable settings; the same classes define YAML files, dotted overrides and the JSON schema."""

from sdm_ray.config.adversary import AdversarySettings, PoolSettings
from sdm_ray.config.attack import AttackSettings
from sdm_ray.config.base import LogRange, Settings
from sdm_ray.config.blocking import BlockingSettings
from sdm_ray.config.data import DataSettings, EncoderSettings, SplitFractions, SyntheticWorld
from sdm_ray.config.distil import DistilSettings, GeneralTextSettings
from sdm_ray.config.erase import EraseSettings
from sdm_ray.config.io import (
    check_path,
    content_hash,
    digest,
    load_settings,
    override,
    parse_settings,
    read_document,
    to_yaml,
)
from sdm_ray.config.modules import check_modules, load_own_modules
from sdm_ray.config.schema import json_schema
from sdm_ray.config.sweep import (
    FinalSettings,
    Objective,
    ResourceSettings,
    SearchSettings,
    StoppingSettings,
    SweepSettings,
    TrackingSettings,
)
from sdm_ray.config.terms import TermSettings
from sdm_ray.config.train import Method, RetainSettings, TrainSettings, ValidationSettings
from sdm_ray.config.trial import Origin, RungSettings, RuntimeSettings, ScratchSettings, TrialSettings

__all__ = [
    "AdversarySettings",
    "AttackSettings",
    "BlockingSettings",
    "DataSettings",
    "DistilSettings",
    "EncoderSettings",
    "EraseSettings",
    "FinalSettings",
    "GeneralTextSettings",
    "LogRange",
    "Method",
    "Objective",
    "Origin",
    "PoolSettings",
    "ResourceSettings",
    "RetainSettings",
    "RungSettings",
    "RuntimeSettings",
    "ScratchSettings",
    "SearchSettings",
    "Settings",
    "SplitFractions",
    "StoppingSettings",
    "SweepSettings",
    "SyntheticWorld",
    "TermSettings",
    "TrackingSettings",
    "TrainSettings",
    "TrialSettings",
    "ValidationSettings",
    "check_modules",
    "check_path",
    "content_hash",
    "digest",
    "json_schema",
    "load_own_modules",
    "load_settings",
    "override",
    "parse_settings",
    "read_document",
    "to_yaml",
]
