"""The test suite; a package so that ``python -m tests.hub.server`` finds this one and no other."""
