"""Fixtures that all tests share."""

import pytest
import torch

from tests.hub.fixture import hub
from tests.models import (
    careful_model,
    cifar_model,
    cifar_run,
    patches_only,
    plain_model,
    plain_run,
)
from tests.networks import planted, planted_sites
from tests.pushing import rnp, shipped

__all__ = [
    "careful_model",
    "cifar_model",
    "cifar_run",
    "hub",
    "patches_only",
    "plain_model",
    "plain_run",
    "planted",
    "planted_sites",
    "rnp",
    "shipped",
]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A test, and whatever fixture it is the first to ask for, draws the same in any order."""
    torch.manual_seed(1)  # patterns of triggers are drawn from 0
