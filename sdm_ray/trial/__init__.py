"""A trial: settings in, result out (train, release, attack). Runs without Ray, Optuna and MLflow."""

from sdm_ray.trial.run import iterate_trial, run_trial

__all__ = ["iterate_trial", "run_trial"]
