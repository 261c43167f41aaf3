"""What runs in processes of its own: each tool, timed from the inside.  Start reading at `tools.protocol`."""
