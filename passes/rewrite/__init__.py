"""Rewrite passes: remove what was selected."""
