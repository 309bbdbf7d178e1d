"""The expressions `${{ … }}` that the action uses, and no others.

https://docs.github.com/actions/reference/evaluate-expressions-in-workflows-and-actions
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Contexts = Mapping[str, Mapping[str, str]]
"""Values by context and path within it: `{"inputs": {"model": "…"}}`."""

EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
TERM = re.compile(r"\s*([\w.-]+)\s*(==|!=)\s*'([^']*)'\s*")


def substituted(text: str, contexts: Contexts) -> str:
    """A text with every expression replaced by its value, as it is: GitHub quotes nothing."""
    return EXPRESSION.sub(lambda found: value_of(found[1].strip(), contexts), text)


def value_of(path: str, contexts: Contexts) -> str:
    """`inputs.n` and the like; what is not there is empty, as on GitHub."""
    context, _, rest = path.partition(".")
    if context not in contexts:
        raise ValueError(f"the runner here does not know the expression {path!r}")
    return contexts[context].get(rest, "")


def holds(condition: str, contexts: Contexts) -> bool:
    """An `if:` made of comparisons with texts, joined by `&&`."""
    return all(_term(each, contexts) for each in condition.split("&&"))


def _term(text: str, contexts: Contexts) -> bool:
    found = TERM.fullmatch(text)
    if found is None:
        raise ValueError(f"the runner here does not know the condition {text!r}")
    same = value_of(found[1], contexts).casefold() == found[3].casefold()
    return same if found[2] == "==" else not same
