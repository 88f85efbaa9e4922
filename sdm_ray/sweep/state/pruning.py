"""Decides which trials are pruned at a rung: infeasible, broken, or dominated by earlier trials at that rung."""

from __future__ import annotations

from collections.abc import Sequence

from sdm_ray.config.sweep import SearchSettings


def pruning_reason(
    search: SearchSettings,
    mine: tuple[float, float],
    tuned: tuple[float, float] | None,
    others: Sequence[tuple[float, float]],
) -> str | None:
    """Reason to prune a trial at a rung; None if it continues.

    Args:
        search: settings with the pruning rules.
        mine: (desired, harmful) accuracy of the trial at the rung.
        tuned: accuracies of the tuned reference at the rung; None until it has reached the rung.
        others: accuracies of searched trials that reached the rung earlier.
    """
    (desired, harmful), rule, drop = mine, search.stopping, search.max_desired_drop
    if tuned is not None:
        if drop is not None and rule.infeasible_slack is not None:
            least = tuned[0] - drop - rule.infeasible_slack
            if desired < least:
                return f"its desired accuracy, {desired:.3f}, is below {least:.3f}"
        if rule.broken and harmful >= tuned[1]:
            return f"it is attacked to {harmful:.3f}, the tuned reference to {tuned[1]:.3f}"
    if rule.dominated_share is not None and len(others) >= rule.min_peers:
        better = sum(a >= desired and b <= harmful and (a, b) != mine for a, b in others)
        if better >= rule.dominated_share * len(others):
            return f"{better} of the {len(others)} that came there before dominate it"
    return None
