"""The driver's knowledge of a sweep: its ledger, its trials, which points count, and its clock."""
