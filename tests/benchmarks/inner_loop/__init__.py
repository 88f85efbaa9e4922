"""The inner loop against what a user could write instead: see `tests.benchmarks.inner_loop.__main__`."""
