"""Search of a sweep: search space, checks before the start, samplers, and the Optuna study."""
