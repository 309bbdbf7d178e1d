"""Fixtures that all tests share."""

from tests.hub.fixture import hub
from tests.models import cifar_model, cifar_run, plain_model, plain_run
from tests.pushing import rnp, shipped

__all__ = ["cifar_model", "cifar_run", "hub", "plain_model", "plain_run", "rnp", "shipped"]
