"""The inner loop: adversaries adapt the model step by step, and meta-gradients are taken through their steps."""
