"""What every layer uses: shared types, names of metrics, results, errors, files, locks, seeds, statistics."""
