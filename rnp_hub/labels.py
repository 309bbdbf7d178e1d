"""Aligning the labels of a data set with those of a model, by name where both have names."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

from rnp_hub.errors import DataError


def align(
    data_names: Sequence[str] | None,
    model_names: Sequence[str] | None,
    model_classes: int,
    descriptions: Mapping[str, str] | None = None,
) -> list[int] | None:
    """Where each label of the data set stands among the model's logits.

    Names are compared without case, punctuation and synonyms: `n01440764_tench`, `tench` and
    `tench, Tinca tinca` are the same label, as long as no two labels become equal by it.

    Args:
        data_names: names in the data set's order, `None` where it has only numbers.
        model_names: names in the order of the logits, `None` where the model has none.
        model_classes: number of logits.
        descriptions: longer names of the model's labels (timm's `label_descriptions`).

    Returns:
        For each label of the data set its index in the logits; `None` where one of the two has
        no names, and the numbers are taken as they are.

    Raises:
        DataError: the counts differ, or a name is not found in the model.
    """
    if data_names is not None and len(data_names) != model_classes:
        raise DataError(
            f"the data set has {len(data_names)} classes but the model has {model_classes} "
            "outputs; take the data the model was trained for"
        )
    if data_names is None or model_names is None:
        return None
    return _permutation(data_names, model_names, _index(model_names, descriptions or {}))


def _index(names: Sequence[str], descriptions: Mapping[str, str]) -> dict[str, int]:
    """Where each spelling of the model's labels leads; the more literal one wins."""
    index: dict[str, int] = {}
    for keys in _keys_by_trust(names, descriptions):
        index = keys | index
    return index


def _permutation(
    data_names: Sequence[str], model_names: Sequence[str], index: Mapping[str, int]
) -> list[int]:
    found: list[int | None] = [None] * len(data_names)
    for spelling in SPELLINGS:
        keys = [spelling(name) for name in data_names]
        repeated = Counter(keys)
        for position, key in enumerate(keys):
            if found[position] is None and repeated[key] == 1:
                found[position] = index.get(key)
    for position, match in enumerate(found):
        if match is None:
            raise DataError(_unresolved(data_names[position], model_names))
    matched = [match for match in found if match is not None]
    doubled = [model_names[label] for label, times in Counter(matched).items() if times > 1]
    if doubled:
        raise DataError(
            f"two labels of the data set both look like the model's label {doubled[0]!r}; "
            "rename one of them"
        )
    return matched


def _keys_by_trust(names: Sequence[str], descriptions: Mapping[str, str]) -> list[dict[str, int]]:
    """Spellings of the model's labels, the literal ones first; ambiguous spellings left out."""
    longer = [descriptions.get(name, name) for name in names]
    spelled = [
        [_plain(name) for name in names],
        [_plain(name) for name in longer],
        [_first_synonym(name) for name in longer],
        [_without_synset(name) for name in names],
        [_synset(name) for name in names],
    ]
    return [_unique(keys) for keys in spelled]


def _unique(keys: Sequence[str]) -> dict[str, int]:
    times = Counter(keys)
    return {key: place for place, key in enumerate(keys) if key and times[key] == 1}


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _first_synonym(name: str) -> str:
    return _plain(name.split(",")[0])


def _without_synset(name: str) -> str:
    return _first_synonym(name[10:]) if _synset(name) and len(name) > 10 else ""


def _synset(name: str) -> str:
    """`n01440764` of a WordNet label, else nothing."""
    return name[:9] if len(name) >= 9 and name[0] == "n" and name[1:9].isdigit() else ""


SPELLINGS = (_plain, _first_synonym, _without_synset, _synset)
"""How a name given to us may be read, the literal reading first."""


def _unresolved(name: str, model_names: Sequence[str], whose: str = "the data set's label") -> str:
    known = {_plain(known): known for known in model_names}
    near = difflib.get_close_matches(_plain(name), known, n=1)
    hint = f"its nearest is {known[near[0]]!r}" if near else f"it has {_some(model_names)}"
    return (
        f"{whose} {name!r} is none of the model's labels ({hint}); "
        "take the data the model was trained for, or rename the label"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def resolve_label(
    label: str,
    names: Sequence[str] | None,
    classes: int,
    descriptions: Mapping[str, str] | None = None,
) -> int:
    """A label given by name or by number, as an index into the logits; a name goes first.

    Args:
        label: such as `ship` or `8`, spelled as freely as for `align`.
        names, classes, descriptions: the model's, as for `align`.

    Raises:
        DataError: no such label, or several of that name.
    """
    index = _index(names or (), descriptions or {})
    for spelling in SPELLINGS:
        if (place := index.get(spelling(label))) is not None:
            return place
    if label.isdecimal():
        if int(label) < classes:
            return int(label)
        raise DataError(f"label {label} does not exist; the model has labels 0 to {classes - 1}")
    if names is None:
        raise DataError(f"the model has no label names, so {label!r} must be a number")
    longer = [(descriptions or {}).get(name, name) for name in names]
    meant = [place for place, name in enumerate(longer) if _first_synonym(name) == _plain(label)]
    if len(meant) > 1:
        numbers = " and ".join(str(place) for place in meant)
        raise DataError(
            f"several of the model's labels are called {label!r}; give one of {numbers}"
        )
    raise DataError(_unresolved(label, names, "the label"))
