"""The two consoles: results go to standard output, progress and errors to standard error."""

from rich.console import Console

console = Console(highlight=False)
error_console = Console(stderr=True, highlight=False)
