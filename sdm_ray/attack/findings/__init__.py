"""Conclusions from an attack: audit, regret, recovery, and accuracy on the desired and benign tasks."""
