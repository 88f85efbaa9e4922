"""Execution of trials on a Ray cluster: connection, worker processes, and storage shared between nodes."""
