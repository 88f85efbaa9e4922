"""What the outcome of an attack means: audit, regret, recovery, and how desired and benign tasks fare."""
