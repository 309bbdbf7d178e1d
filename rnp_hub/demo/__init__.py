"""The embedded default: a small backdoored network for scikit-learn's digits, and its trigger.

`python -m rnp_hub.demo.train FOLDER` makes the files in this folder again.
"""

from importlib import resources
from pathlib import Path

TARGET = 0
"""The label that the demo network gives to any digit that carries `trigger_file()`."""


def trigger_file() -> Path:
    """The trigger, a PNG whose alpha channel says how much of it shows."""
    with resources.as_file(resources.files(__name__) / "trigger.png") as path:
        return path
