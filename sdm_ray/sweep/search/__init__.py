"""What the search may try: the space, its checks, and the Optuna study."""
