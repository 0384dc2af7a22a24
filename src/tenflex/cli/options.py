"""Commands from dataclasses of settings, and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, field, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from tenflex.cli.errors import clean_errors
from tenflex.cli.readers import Blocks
from tenflex.cli.settings import Settings
from tenflex.distributed import process_group

Asked = TypeVar("Asked", bound=Settings)


def option(
    help: str, metavar: str | None = None, panel: str | None = None, *flags: str, default: Any = None, **others: Any
) -> Any:
    """A setting that is given by an option.

    Args:
        help: What it is, for `--help`.
        metavar: What stands for its value there; None for its type.
        panel: The heading below which it stands.
        flags: How it is written, if not as its name.
        default: Its value if it is not given; MISSING if it must be.
        others: What else typer knows of options.
    """
    shown = typer.Option(*flags, metavar=metavar, help=help, rich_help_panel=panel, **others)
    return field(default=default, metadata={"shown": shown})


def argument(help: str, metavar: str, default: Any = MISSING) -> Any:
    """A setting that is given by its place."""
    return field(default=default, metadata={"shown": typer.Argument(metavar=metavar, help=help)})


MODEL = (
    "The network as package.module:name, a function that returns it or the network itself. It is put in eval mode.",
    "MODEL",
)
STATE = "A state dict for the network: .safetensors, or .pt, of which only tensors are loaded.", "FILE"
DEVICE = "Where PyTorch computes: cpu, cuda or cuda:1; with torchrun each process takes a card of its own.", "DEVICE"
INPUTS = (
    "Unlabelled inputs, samples first: .npy, .npz, .safetensors or .pt, with :NAME for one of several arrays; or "
    "package.module:name, a function or what it would return.",
    "FILE",
)
OUT = "Where to save: a new or empty folder, or an earlier result.", "FOLDER"
AUGMENT = (
    "A function from inputs to changed inputs, as package.module:name; the original is asked at these too.",
    "FUNCTION",
)
"""What several commands say of their settings."""

FILE = "The same settings as YAML or JSON, such as the run.yaml beside a result. Options win over it; "
JSON = typer.Option("--json", help="Print JSON, and nothing else, on stdout.")
DEBUG = typer.Option("--debug", help="Show the traceback of an error.")


def command(
    kind: type[Asked], config: str | None = None
) -> Callable[[Callable[[Asked, bool], None]], Callable[..., None]]:
    """Make a command for typer of a function of settings, and of whether to print JSON.

    Args:
        kind: The settings.
        config: What options replace in a file of the same settings, for `--help`; None if there is no `--config`.
    """

    def decorate(run: Callable[[Asked, bool], None]) -> Callable[..., None]:
        def call(json: bool, debug: bool, **given: Any) -> None:
            with clean_errors(debug), process_group():
                run(kind(**given) if config is None else kind.merge(given.pop("config"), given), json)

        call.__signature__ = _signature(kind, config)  # type: ignore[attr-defined] # which typer reads
        call.__name__, call.__doc__ = run.__name__, run.__doc__
        return call

    return decorate


def _signature(kind: type[Settings], config: str | None) -> Signature:
    """The options; with `config`, each is None where it is not given, so that a file can give it."""
    if config is None:
        hints = get_type_hints(kind)
        parameters = [_parameter(one.name, hints[one.name], one.metadata["shown"], one.default) for one in fields(kind)]
    else:
        forms = {name: _form(one) for name, one in kind.kinds().items()}
        parameters = [_parameter(one.name, forms[one.name] | None, one.metadata["shown"], None) for one in fields(kind)]
        parameters.append(_parameter("config", Path | None, typer.Option(metavar="FILE", help=FILE + config), None))
    return Signature([*parameters, _parameter("json", bool, JSON, False), _parameter("debug", bool, DEBUG, False)])


def _form(kind: Any) -> Any:
    """What typer makes of an option; the rest is done by `READERS`, for files as well."""
    return list[str] if kind == Blocks else kind if kind in (int, float, bool) else str


def _parameter(name: str, hint: Any, shown: Any, default: Any) -> Parameter:
    default = Parameter.empty if default is MISSING else default
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[hint, shown], default=default)
