"""The inner loop: adversaries adapt the model step by step, and gradients flow back through it."""
