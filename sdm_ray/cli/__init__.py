"""The command line `sdm-ray`: argument parsing, progress and exit codes, and nothing that a library user would need."""

from sdm_ray.cli.app import main

__all__ = ["main"]
