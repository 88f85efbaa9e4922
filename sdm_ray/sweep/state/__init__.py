"""What the driver knows of a sweep: the ledger, who runs, who ended, what counts."""
