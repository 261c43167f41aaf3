"""Where the jobs of a batch run."""
