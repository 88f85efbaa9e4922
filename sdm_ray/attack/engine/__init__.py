"""Runs fine-tunes: what each one draws, stacks of attackers that train together, and their scoring."""
