"""The command line: `tenflex demo`, `inspect`, `compress`, `evaluate`, `compare`, `decouple`."""

from tenflex.cli.app import main

__all__ = ["main"]
