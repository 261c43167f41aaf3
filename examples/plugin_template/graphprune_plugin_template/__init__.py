"""A plugin for graphprune: one criterion, one operator, one exporter."""
