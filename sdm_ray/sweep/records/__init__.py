"""A sweep's files on disk: finding, resuming and reusing sweeps."""
