"""Running attackers: random draws, stacks of attackers that train together, and scoring."""
