"""Every exception this package raises on purpose, drawn as a tree.

    RnpHubError                 the tool could not do what was asked (exit code 2)
    ├── ModelError              the model cannot be found, read, built or trusted to be itself
    │   ├── NoGateSitesError    the network has no filter that a mask could gate
    │   └── AtChanceError       the network knows no more of its data than chance does
    ├── DataError               the data set cannot be found, read, split or matched to the model
    ├── TriggerError            a trigger is unknown, malformed or does not fit the pictures
    ├── ConfigError             a setting is outside its range or contradicts another
    ├── OutputError             the output folder exists, is not ours, or cannot be written
    ├── PushError               the Hub, or what lies there, does not let a folder be pushed
    ├── TrustError              a folder cannot be signed, or its signature not be looked at
    └── ProofError              an artefact is not what it must equal

Each message is one sentence: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator


class RnpHubError(Exception):
    """Root of the tree: the message is meant for the person at the terminal."""


class ModelError(RnpHubError):
    """The model cannot be found, read, built or trusted to be itself."""


class NoGateSitesError(ModelError):
    """The network has no filter that a mask could gate."""


class AtChanceError(ModelError):
    """The network knows no more of its data than chance does."""


class DataError(RnpHubError):
    """The data set cannot be found, read, split or matched to the model."""


class TriggerError(RnpHubError):
    """A trigger is unknown, malformed or does not fit the pictures."""


class ConfigError(RnpHubError):
    """A setting is outside its range or contradicts another."""


class OutputError(RnpHubError):
    """The output folder exists, is not ours to replace, or cannot be written."""


class PushError(RnpHubError):
    """The Hub, or what lies there, does not let a folder be pushed, or not be read back."""


class TrustError(RnpHubError):
    """A folder cannot be signed, or its signature not be looked at."""


class ProofError(RnpHubError):
    """An artefact is not what it must equal; unless it was published already, it is not kept."""


def reason(error: BaseException) -> str:
    """The first line of a foreign exception's message, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__


def transport_errors(*others: type[BaseException]) -> tuple[type[BaseException], ...]:
    """What goes wrong on the way to a file: the root of the HTTP library, `OSError`, and a job that
    cannot say who it is (see `publisher`).

    That library differs between releases of huggingface_hub, and its errors come through as they
    are; the Hub's own error is always built on both.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, *identity_errors(), *others)


def identity_errors() -> tuple[type[BaseException], ...]:
    """What the Hub's client raises where a job cannot say who it is; before 1.19 it never asks."""
    from huggingface_hub import errors

    found = getattr(errors, "OIDCError", None)
    return () if found is None else (found,)
