"""Adapters for Ray Tune: trainable, searcher, scheduler and callback."""
