"""Back to torch: plans applied to the user's own modules.  Start reading at `graphprune.exporters.pytorch.apply`."""
