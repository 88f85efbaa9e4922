"""Text from files of others within Markdown and on terminals: it is shown, and steers nothing.

Names of columns, classes, trials and metrics are whatever a file says.
"""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*\[\]<>|#~$])")


def one_line(text: object) -> str:
    """Text without line breaks and without what steers a terminal (control characters, marks of direction)."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in _joined(text))


def markdown(text: object) -> str:
    """Text that Markdown shows as it is: no heading, emphasis, link, HTML, or further cell of a table."""
    return _SPECIAL.sub(r"\\\1", one_line(text))


def markdown_code(text: object) -> str:
    """Text as code within a line of Markdown, which no backtick in it can end."""
    return f"`{one_line(text).replace('`', chr(39))}`"


def _joined(text: object) -> str:
    return " ".join(str(text).split())
