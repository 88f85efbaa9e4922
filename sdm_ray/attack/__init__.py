"""The attack on a released model: a searching attacker, floors, regret. It imports nothing from meta-training."""
