"""Meta-training: simulated adversaries, what they cost the trunk, and the loop around them."""
