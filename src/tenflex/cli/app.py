"""The commands together."""

from __future__ import annotations

import platform
from typing import Annotated

import torch
import typer

from tenflex._version import __version__
from tenflex.cli.compare import compare
from tenflex.cli.compress import compress
from tenflex.cli.decouple import decouple
from tenflex.cli.demo import demo
from tenflex.cli.evaluate import evaluate
from tenflex.cli.export import bench, export
from tenflex.cli.finetune import finetune
from tenflex.cli.inspect import inspect
from tenflex.cli.report import report

app = typer.Typer(
    name="tenflex",
    help="Small neural networks by flexible activation functions, computed with tensors instead of training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, inspect, compress, finetune, evaluate, export, bench, compare, report, decouple):
    app.command()(command)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tenflex {__version__} (torch {torch.__version__}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    app(prog_name="tenflex")
