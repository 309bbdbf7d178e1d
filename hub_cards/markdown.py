"""Foreign text in Markdown: names, licences and paths that must not become markup.

Labels, triggers and repository names come from whoever made the model. In a table cell a pipe ends
the cell, in a paragraph `</details>` ends the fold, in the metadata `---` ends the block; here they
are letters like all others.
"""

from __future__ import annotations

import re

from rnp_hub.text import one_line, utf8

MARKUP = re.compile(r"[&<>\"`|\\*\[\]~$#{}]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown, GitHub's tables or HTML could take for more than a letter."""


def plain(text: str) -> str:
    """Text that reads as it is, in a paragraph, in a cell and within HTML."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", one_line(text))


def code(text: str) -> str:
    """The same in a typewriter face."""
    shown = one_line(text)
    # Within backticks a pipe still ends a cell, and a backtick ends the code.
    if not shown or "|" in shown or "`" in shown:
        return f"<code>{plain(text)}</code>"
    return f"`{shown}`"


def fenced(text: str) -> str:
    """A block of code, in a fence that is longer than any within."""
    text = utf8(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
