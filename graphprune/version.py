"""The version of graphprune, in one place (setup.cfg reads it)."""

VERSION = "0.1.0"
