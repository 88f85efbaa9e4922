"""Models: a trunk over any Hugging Face encoder, linear heads, the built-in encoder and its pretraining."""
