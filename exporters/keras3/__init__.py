"""Back to Keras: plans applied to the user's own models.  Start reading at `graphprune.exporters.keras3.apply`."""
