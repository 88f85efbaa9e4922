"""Adapters for Ray Tune: trainable, searcher, scheduler, stopper and callback."""
