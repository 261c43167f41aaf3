"""Importance passes: how much each channel matters."""
