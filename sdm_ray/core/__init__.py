"""Shared by all layers: types, metric names, results, errors, files, locks, seeds, statistics."""
