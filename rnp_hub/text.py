"""Text from elsewhere: labels, names and messages of whoever made a model, fit to be shown."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Without line breaks and control characters, so that no terminal obeys what it shows."""
    return " ".join("".join(c if c.isprintable() else " " for c in utf8(text)).split())


def utf8(text: str) -> str:
    """With a question mark for each half of a surrogate pair, which no file could hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
