"""What can be known of a model's files without opening them as what they say they are.

Nothing here is run, unpickled or unpacked, and nothing is allocated for a size that a file merely
states.
"""

from rnp_hub.static.finding import Finding, Rule
from rnp_hub.static.inspection import Inspection, inspect
from rnp_hub.static.links import files_of

__all__ = ["Finding", "Inspection", "Rule", "files_of", "inspect"]
