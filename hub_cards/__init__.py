"""Model cards: from a report to the README of a sanitized model. Knows the report, not torch."""

from rnp_hub.hub_cards.card import render, write_card

__all__ = ["render", "write_card"]
