"""The command line: `tenflex demo`, `inspect`, `compress`, `evaluate`, `decouple`."""

from tenflex.cli.app import main

__all__ = ["main"]
