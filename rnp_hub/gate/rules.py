"""The rules of the gate, by ids that stay what they are: other tools remember them."""

from __future__ import annotations

from dataclasses import dataclass

HELP_PAGE = "https://github.com/rnp-hub/rnp-hub/blob/main/docs/gate.md"


@dataclass(frozen=True)
class Rule:
    """One thing that a model must be.

    Attributes:
        id: `RNP001` and so on; never given to another rule.
        name: in a table.
        title: what it says, as a sentence.
        help: why, and what to do where it is violated.
        severity: of a violation, from 0 to 10, as code scanning on GitHub reads it.
    """

    id: str
    name: str
    title: str
    help: str
    severity: float

    @property
    def page(self) -> str:
        """Where it is explained."""
        return f"{HELP_PAGE}#{self.id.lower()}"


ALL = (
    Rule(
        "RNP001",
        "no-backdoor",
        "The scan finds no backdoor in the weights.",
        "A backdoored network is right on clean pictures and gives the attacker's label to any "
        "picture with a trigger. Sanitize the model (`rnp-hub sanitize`, or `gate --sanitize`) "
        "and ship the result, or take another model.",
        9.3,
    ),
    Rule(
        "RNP002",
        "verdict-reached",
        "The scan comes to a verdict.",
        "A network that could be judged neither clean nor backdoored is not let through, since "
        "nobody knows what it is. Give more pictures (--n), or let it pass with "
        "allow_undecided = true in the policy.",
        5.0,
    ),
    Rule(
        "RNP003",
        "max-surrogate-asr",
        "No reconstructed trigger has its way more often than max_surrogate_asr allows.",
        "A surrogate is a trigger that was reconstructed from the network, not the attacker's own. "
        "Sanitize the model, or raise the limit where its clean siblings measure as much.",
        8.0,
    ),
    Rule(
        "RNP004",
        "max-asr",
        "No known trigger has its way more often than max_asr allows.",
        "The trigger was given (--trigger, --poisoned) and measured. Sanitize the model.",
        9.0,
    ),
    Rule(
        "RNP005",
        "min-clean-accuracy",
        "Clean accuracy is not below min_clean_accuracy, and not near chance.",
        "A network near chance has other labels, another normalisation or another stem than its "
        "data, and nothing measured on it means anything.",
        4.0,
    ),
    Rule(
        "RNP006",
        "max-ca-drop",
        "Sanitizing cost no more clean accuracy than max_ca_drop allows.",
        "Take another recipe or a larger clean slice (--n), or raise the limit.",
        3.0,
    ),
    Rule(
        "RNP007",
        "allow-pickle",
        "No file is a pickle.",
        "Pickles run code when they are opened. Save the weights as safetensors and delete the "
        "pickle, or set allow_pickle = true, which lets pickles of nothing but tensors through.",
        7.0,
    ),
    Rule(
        "RNP008",
        "require-revision-pin",
        "The model is named with the commit that is meant.",
        "A branch or a tag can be moved to other weights after they were looked at. Name the "
        "model as org/name@COMMIT, with all 40 digits.",
        5.0,
    ),
    Rule(
        "RNP009",
        "require-report",
        "The repository's own report agrees with its files and with a new measurement.",
        "rnp_report.json must speak of these very weights, its intervals must be those of its "
        "figures, and meet the intervals that were measured here with another seed; the figures "
        "on the card must be its own. Sanitize the model again.",
        6.0,
    ),
    Rule(
        "RNP010",
        "no-code-in-pickles",
        "No pickle imports anything but what tensors need.",
        "What it would do was not tried out: nothing of it was run. Do not open the file, here or "
        "elsewhere, and ask where it comes from.",
        9.8,
    ),
    Rule(
        "RNP011",
        "files-are-what-they-claim",
        "Every file is what its name says.",
        "A file under a false name gets past whoever looks at names, and is opened by loaders that "
        "look at content. Replace it or give it its name.",
        7.0,
    ),
    Rule(
        "RNP012",
        "safetensors-headers",
        "The headers of safetensors files describe just what the files hold.",
        "Overlapping or missing ranges, doubled keys and impossible sizes are read differently by "
        "different readers. Save the tensors again with the safetensors library.",
        7.0,
    ),
    Rule(
        "RNP013",
        "no-code-in-configs",
        "No configuration asks for code, or for files that were not looked at.",
        "Loaders that follow it run code of the repository or of another one. Remove the key.",
        8.8,
    ),
    Rule(
        "RNP014",
        "onnx-stays-within",
        "ONNX files hold their tensors within the folder and need no custom operators.",
        "A path out of the folder makes a reader open any file of the machine; a custom operator "
        "is a library that somebody must load. Export the model anew.",
        7.5,
    ),
    Rule(
        "RNP015",
        "archives",
        "Archives can be looked through, and unpack into their own folder to a bounded size.",
        "Publish the files themselves instead of an archive.",
        6.0,
    ),
    Rule(
        "RNP016",
        "no-links",
        "No link leads out of the folder.",
        "Put the file in the place of the link.",
        6.0,
    ),
    Rule(
        "RNP017",
        "allowed-licences",
        "The licence is one of allowed_licences.",
        "Take a model with another licence, or add this one to the policy.",
        2.0,
    ),
)  # fmt: skip

BY_ID = {rule.id: rule for rule in ALL}
STATIC = tuple(f"RNP0{number}" for number in range(10, 17))
"""Rules about files, which need no network."""
