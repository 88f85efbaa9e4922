"""State of a sweep on the driver: ledger, trials, points with their feasibility, and clock."""
