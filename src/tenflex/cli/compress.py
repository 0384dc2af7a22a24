"""`tenflex compress`: replace blocks of a network by flexible layers, and save the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tenflex.cli.bars import Bars
from tenflex.cli.blocks import parse_blocks
from tenflex.cli.console import note, show, show_json
from tenflex.cli.errors import clean_errors
from tenflex.cli.folders import require_writable
from tenflex.cli.network import load_network
from tenflex.cli.options import Debug, Inputs, Json, ModelOrConfig, Weights
from tenflex.cli.settings import RESOLVED, Settings, merge, write_settings
from tenflex.cli.tensors import load_inputs
from tenflex.compress import Compression
from tenflex.compress import compress as run
from tenflex.planning.plan import Plan
from tenflex.result import Result
from tenflex.storage.files import WEIGHTS, require_own_folder
from tenflex.surgery import find_blocks


def compress(
    model: ModelOrConfig = None,
    weights: Weights = None,
    inputs: Inputs = None,
    block: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BLOCK",
            help="A block and the size of its layer, as fc1:fc3,rank=40,factor=10 (settings of tenflex.Block: rank, "
            "factor, output_factor, basis). A name may have wildcards. Several blocks: repeat the option.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Where to save: a new or empty folder, or an earlier result.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help=f"The most inputs that are used; {Plan.samples} if not given.", show_default=False),
    ] = None,
    basis: Annotated[
        str | None,
        typer.Option(
            help="The functions of every activation, such as BSpline(12); Smooth(BSpline(10), 0.1) if not given.",
            show_default=False,
        ),
    ] = None,
    coupling: Annotated[
        float | None,
        typer.Option(
            help=f"The weight of the outputs' error beside the Jacobians'; {Plan.coupling} if not given.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help=f"The seed of all random choices; {Plan.seed} if not given.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The same settings as YAML or JSON, such as the run.yaml beside a result. Options win over it; "
            "--block replaces all its blocks.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Replace blocks of a trained network by flexible layers, from unlabelled inputs.

    Example: tenflex compress shop.models:classifier --weights trained.safetensors --inputs images.npy
    --block fc1:fc3,rank=40,factor=10 --out small
    """
    with clean_errors(debug):
        given = {
            **{"model": model, "weights": weights, "inputs": inputs, "out": out},
            **{"blocks": parse_blocks(block) if block else None, "samples": samples, "basis": basis},
            **{"coupling": coupling, "seed": seed},
        }
        settings = merge(config, given)
        require_own_folder(Path(settings.out))
        require_writable(Path(settings.out))
        compression = _compress(settings)
        settings = settings.resolved(compression.plan)
        _save(compression, settings)
        _show(compression, settings, json)


def _compress(settings: Settings) -> Compression:
    """Load, and compress under progress bars."""
    network = load_network(settings.model, settings.weights)
    inputs = load_inputs(settings.inputs, network)
    plan = settings.plan
    with Bars(len(find_blocks(network, plan.blocks))) as bars:
        return run(
            network,
            inputs,
            plan.blocks,
            samples=plan.samples,
            basis=plan.basis,
            coupling=plan.coupling,
            seed=plan.seed,
            on_progress=bars,
        )


def _save(compression: Compression, settings: Settings) -> None:
    """The result, and beside it the settings that were carried out."""
    folder = Path(settings.out)
    compression.save(folder)
    write_settings(folder / RESOLVED, settings.to_dict())


def _show(compression: Compression, settings: Settings, json: bool) -> None:
    for block in compression.report.blocks:
        if block.result in (Result.DIVERGED, Result.SINGULAR):
            note(f"{block.name or 'network'}: {block.result.value}")
    if json:
        show_json({"out": settings.out, "settings": settings.to_dict(), "report": compression.report.to_dict()})
        return
    size = (Path(settings.out) / WEIGHTS).stat().st_size / 1000
    show(
        compression.report,
        "Errors are relative, of the outputs on held-out inputs and of the Jacobians on fitted ones.",
        f"Saved in {settings.out} ({size:,.0f} kB). In Python: tenflex.load({settings.out!r}, model)",
    )
