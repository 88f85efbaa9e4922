"""Escape text from untrusted files for Markdown and terminals.

Names of columns, classes, trials and metrics can be any text in a file.
"""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*\[\]<>|#~$])")


def one_line(text: object) -> str:
    """Remove line breaks and terminal controls (control characters, marks of text direction)."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in _joined(text))


def markdown(text: object) -> str:
    """Escape text for Markdown: no heading, emphasis, link, HTML, or additional table cell."""
    return _SPECIAL.sub(r"\\\1", one_line(text))


def markdown_code(text: object) -> str:
    """Inline Markdown code, also for text that contains backticks."""
    return f"`{one_line(text).replace('`', chr(39))}`"


def _joined(text: object) -> str:
    return " ".join(str(text).split())
