"""Attacks on released models: search, references, regret. Imports nothing from meta-training."""
