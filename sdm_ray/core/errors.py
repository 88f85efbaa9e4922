"""The two errors that reach a user, each one clear sentence: what, where, the value, the fix.

The command line prints the message without a traceback and exits with `exit_code`; library callers catch them as the
built-in exceptions that they derive from.
"""


class UsageError(ValueError):
    """What was asked for cannot be done as asked: a bad setting, a missing file, an absent column."""

    exit_code = 2


class RunError(RuntimeError):
    """A well-formed request failed on the way: no network, a full disk, a diverged run."""

    exit_code = 1
