"""The `bramble` command."""

from bramble.cli.app import main

__all__ = ["main"]
