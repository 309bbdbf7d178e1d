"""rnp-hub: find and cut the filters that carry a backdoor in an image classifier.

Names are imported when they are first used, so that `rnp-hub --help` needs no torch. Each
stage is a public function in the module of its name: `rnp_hub.unlearn.unlearn`, and so on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rnp_hub.method import SanitizeConfig, Sanitized, sanitize
    from rnp_hub.pull import load
    from rnp_hub.sites import gate_sites
    from rnp_hub.slim import remove_filters

__all__ = [
    "SanitizeConfig",
    "Sanitized",
    "__version__",
    "gate_sites",
    "load",
    "remove_filters",
    "sanitize",
]

_HOMES = {
    "SanitizeConfig": "method",
    "Sanitized": "method",
    "gate_sites": "sites",
    "load": "pull",
    "remove_filters": "slim",
    "sanitize": "method",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
