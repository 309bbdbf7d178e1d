"""Model cards: from a report to the README of a sanitized model. Knows the report, not torch."""

from rnp_hub.hub_cards.card import render

__all__ = ["render"]
