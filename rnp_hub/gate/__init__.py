"""The gate: a model against a policy, as an exit code and as files that other tools read."""

from rnp_hub.gate.outputs import Outputs
from rnp_hub.gate.policy import Policy
from rnp_hub.gate.result import GateReport, RuleRecord
from rnp_hub.gate.run import GateJob, GatePlan, gate, plan

__all__ = [
    "GateJob",
    "GatePlan",
    "GateReport",
    "Outputs",
    "Policy",
    "RuleRecord",
    "gate",
    "plan",
]
