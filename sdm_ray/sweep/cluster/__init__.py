"""Where trials run: the Ray cluster, its workers, and what machines share."""
