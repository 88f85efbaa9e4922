"""Golden values: what the system computed before its redesign, pinned to the bit on the machine that recorded them.

`python -m tests.golden record [AREA...]` records anew; `tests/test_golden.py` compares.
"""
