"""Every failure is a line on stderr and an exit code."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from tenflex.distributed import AgreedError, is_first

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes: what was asked cannot be done; something failed while it was done; Ctrl-C."""


class InputError(ValueError):
    """Something that the user named cannot be used."""


class SeveralInputError(InputError):
    """Several things that the user named cannot be used.

    Args:
        errors: What is wrong with each.
    """

    def __init__(self, errors: Sequence[Exception]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = tuple(errors)


def together(*checks: Callable[[], Any]) -> list[Any]:
    """What each of several checks gives; where more than one fails, all of their errors in one."""
    found, errors = [], list[Exception]()
    for check in checks:
        try:
            found.append(check())
        except (TypeError, ValueError) as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise SeveralInputError(errors)
    return found


@contextmanager
def clean_errors(debug: bool) -> Iterator[None]:
    """Turn exceptions into a line each and an exit code; with `debug`, into a traceback as well."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # whatever a network or a library may raise
        if debug:
            typer.echo(traceback.format_exc(), err=True, nl=False)
        for one in error.errors if isinstance(error, SeveralInputError) else (error,):
            if is_first() or not isinstance(one, (InputError, AgreedError)):  # the first process tells what all know
                typer.echo(f"error: {describe(one)}", err=True)
        raise typer.Exit(BAD_INPUT if isinstance(error, (TypeError, ValueError)) else FAILED) from None


def describe(error: BaseException) -> str:
    """What went wrong, in one line; with the name of the exception where the message alone would not do."""
    if isinstance(error, (OSError, TypeError, ValueError)) and str(error):
        return one_line(error)
    return f"{type(error).__name__}: {one_line(error)} (--debug shows where)"


def one_line(error: BaseException) -> str:
    """The message of an exception, without its line breaks."""
    return " ".join(str(error).split())


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn what the operating system says about a file that is read into an `InputError`."""
    try:
        yield
    except OSError as error:
        why = f"{path} cannot be read: {error.strerror}" if error.strerror else str(error)
        raise InputError(why) from None
