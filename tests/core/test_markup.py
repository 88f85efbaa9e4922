"""Text of others is shown, and steers nothing."""

from __future__ import annotations

import pytest

from sdm_ray.core.markup import markdown, markdown_code, one_line


@pytest.mark.parametrize(
    ("text", "plain", "inline", "code"),
    [
        ("profession", "profession", "profession", "`profession`"),
        ("a_b c", "a_b c", "a_b c", "`a_b c`"),
        ("a\n\n# b", "a # b", r"a \# b", "`a # b`"),
        ("a|b `c`", "a|b `c`", r"a\|b \`c\`", "`a|b 'c'`"),
        ("<b>[x](y)</b>", "<b>[x](y)</b>", r"\<b\>\[x\](y)\</b\>", "`<b>[x](y)</b>`"),
        ("\x1b[31mred\u202e", "\ufffd[31mred\ufffd", "\ufffd\\[31mred\ufffd", "`\ufffd[31mred\ufffd`"),
    ],
)
def test_text_stays_text(text: str, plain: str, inline: str, code: str) -> None:
    assert (one_line(text), markdown(text), markdown_code(text)) == (plain, inline, code)
