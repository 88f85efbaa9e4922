"""Figures, tables and the HTML page of a sweep; this package only draws and computes no measurements."""
