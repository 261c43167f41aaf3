"""Repair passes: weights that make up for what was removed."""
