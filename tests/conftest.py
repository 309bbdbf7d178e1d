"""Fixtures that all tests share."""

from tests.hub.fixture import hub

__all__ = ["hub"]
