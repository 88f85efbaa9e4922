"""The outer step: what it plans, computes and updates."""
