"""Exporters: one file a target."""
