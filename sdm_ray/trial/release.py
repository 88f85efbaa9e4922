"""A trained model as an attacker receives it, and the public knowledge about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.config import AttackSettings, EncoderSettings, TrialSettings
from sdm_ray.config.attack import WALKING_BACK
from sdm_ray.config.support import Support
from sdm_ray.core.types import Params
from sdm_ray.models.encoder import Trunk, fresh_params
from sdm_ray.trial.workspace import Workspace, trunk_params

if TYPE_CHECKING:
    from torch import Tensor

    from sdm_ray.models.encoder import Trunk


ReferenceName = Literal["pretrained", "random", "scratch"]
"""Names of the references that every trial may be compared with."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A released model."""

    trunk: Trunk
    """The architecture."""
    params: Params
    """The weights."""
    encoder: EncoderSettings | None = None
    """Public encoder that it was trained from; None if unknown."""
    architecture: EncoderSettings | None = None
    """Source of the architecture for random initialisation; None takes `encoder`."""
    desired_head: Tensor | None = None
    """(C, D) head of the desired task; None if there is none."""
    trained_against: Sequence[Support] = ()
    """Possible adversaries of its training."""
    shared: ReferenceName | None = None
    """Name of the reference, if it is one that all trials share: its attack is then cached."""

    @classmethod
    def of(cls, settings: TrialSettings, *, trunk: Trunk, params: Params, desired_head: Tensor | None) -> Release:
        """Release of a trained model of a trial with these settings."""
        method = settings.train.method
        return cls(
            trunk=trunk,
            params=params,
            encoder=settings.encoder,
            desired_head=desired_head,
            trained_against=settings.train.adversary.supports() if method == "mlac" else (),
            shared=method if method in ("pretrained", "random", "scratch") else None,
        )


def own_knowledge(trunk: Trunk) -> Knowledge:
    """Public knowledge about an architecture."""
    return Knowledge(redraw=partial(fresh_params, trunk))


def knowledge_of(work: Workspace, release: Release, settings: AttackSettings) -> Knowledge:
    """Public knowledge about a release, as far as the attack's families use it."""
    public = masked_lm = None
    if release.encoder is not None and set(WALKING_BACK) & set(settings.families):
        public = trunk_params(work.trunk(release.encoder, "pretrained", 0))
    chained = "composed" in settings.families and any("masked_lm" in chain for chain in settings.edit_chains)
    if release.encoder is not None and (chained or "masked_lm" in settings.families):
        masked_lm = work.masked_lm(release.encoder)  # without such a head the family raises
    return Knowledge(
        public=public,
        own_head=release.desired_head,
        masked_lm=masked_lm,
        redraw=partial(fresh_params, release.trunk),
    )
