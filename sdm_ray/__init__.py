"""Self-destructing models: meta-training, attack and search."""
