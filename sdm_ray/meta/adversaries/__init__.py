"""Simulated adversaries: the distribution they are drawn from, fresh ones, and a pool of persistent ones."""
