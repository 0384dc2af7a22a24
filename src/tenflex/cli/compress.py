"""`tenflex compress`: replace blocks of a network by flexible layers, and save the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

from tenflex.bases import Basis
from tenflex.cli.bars import Bars
from tenflex.cli.console import note, show, show_json
from tenflex.cli.errors import InputError
from tenflex.cli.folders import require_writable
from tenflex.cli.network import load_network
from tenflex.cli.options import INPUTS, MODEL, OUT, STATE, argument, command, option
from tenflex.cli.readers import Blocks, Bytes
from tenflex.cli.settings import RESOLVED, Settings, write_settings
from tenflex.cli.tensors import load_inputs
from tenflex.compress import Compression
from tenflex.compress import compress as run
from tenflex.coordinates import Coordinates
from tenflex.planning.plan import DEFAULT_BASIS, Plan
from tenflex.sampling.memory import in_units
from tenflex.solvers import Solver
from tenflex.storage.files import WEIGHTS, require_own_folder
from tenflex.surgery import find_blocks


@dataclass(frozen=True, kw_only=True)
class CompressSettings(Settings):
    """What `tenflex compress` does; every path is as seen from the folder in which it runs.

    Raises:
        InputError: if no block is named.
        ValueError: if a number is out of its range.
    """

    cures: ClassVar[Mapping[str, str]] = {"model": "name the network as package.module:name"}

    model: str = argument(*MODEL)
    weights: str | None = option(*STATE)
    inputs: str = option(*INPUTS, default=MISSING)
    blocks: Blocks = option(
        "A block and the size of its layer, as fc1:fc3,rank=40,factor=10 (settings of tenflex.Block: rank, factor, "
        "output_factor, basis). A name may have wildcards. Several blocks: repeat the option.",
        "BLOCK",
        None,
        "--block",
    )
    out: str = option(*OUT, default=MISSING)
    samples: int = option(f"The most inputs that are used; {Plan.samples} if not given.", default=Plan.samples)
    basis: Basis = option(
        "The functions of every activation, such as BSpline(12); Smooth(BSpline(10), 0.1) if not given.",
        default=DEFAULT_BASIS,
    )
    coordinates: Coordinates | None = option(
        "The inputs' coordinates, Sensitivity() or Whiten(); Sensitivity() with a chosen shrinkage if not given."
    )
    lost_energy: float = option(
        "The share of the Jacobians' energy that may be dropped with the directions in which a block does least; "
        f"{Plan.lost_energy} if not given.",
        default=Plan.lost_energy,
    )
    held_out: float = option(
        f"The share of the samples that are never fitted; {Plan.held_out} if not given.", default=Plan.held_out
    )
    memory: Bytes = option(
        "The most memory for a block's Jacobians and what is done with them, such as 2 GiB; "
        f"{in_units(Plan.memory)} if not given.",
        default=Bytes(Plan.memory),
    )
    coupling: float | None = option(
        "The weight of the outputs' error beside the Jacobians'; chosen on held-out samples if not given."
    )
    solver: Solver | None = option("The algorithm, such as ConstrainedALS(25), where it is not the default recipe.")
    seed: int = option(f"The seed of all random choices; {Plan.seed} if not given.", default=Plan.seed)

    def __post_init__(self) -> None:
        if not self.blocks:
            raise InputError("no block is named: give --block NAME,rank=40, or set `blocks:` in the file of --config")
        self.plan()  # which checks the numbers

    def plan(self) -> Plan:
        """The same as the library takes it."""
        return Plan(**{one.name: getattr(self, one.name) for one in fields(Plan)})


@command(CompressSettings, config="--block replaces all its blocks.")
def compress(settings: CompressSettings, json: bool) -> None:
    """Replace blocks of a trained network by flexible layers, from unlabelled inputs.

    Example: tenflex compress shop.models:classifier --weights trained.safetensors --inputs images.npy
    --block fc1:fc3,rank=40,factor=10 --out small
    """
    folder = Path(settings.out)
    require_own_folder(folder)
    require_writable(folder)
    compression = _compress(settings)
    settings = replace(settings, blocks=compression.plan.blocks)
    compression.save(folder)
    write_settings(folder / RESOLVED, settings.to_dict())
    _show(compression, settings, json)


def _compress(settings: CompressSettings) -> Compression:
    """Load, and compress under progress bars."""
    network = load_network(settings.model, settings.weights)
    inputs = load_inputs(settings.inputs)
    with Bars(len(find_blocks(network, settings.blocks))) as bars:
        return run(
            network,
            inputs,
            settings.plan(),
            on_progress=bars,
        )


def _show(compression: Compression, settings: CompressSettings, json: bool) -> None:
    report = compression.report
    if json:
        for line in report.warnings:
            note(line)
        show_json({"out": settings.out, "settings": settings.to_dict(), "report": report.to_dict()})
        return
    size = (Path(settings.out) / WEIGHTS).stat().st_size / 1000
    show(report, *report.remarks, *report.warnings)
    show(f"Saved in {settings.out} ({size:,.0f} kB). In Python: tenflex.load({settings.out!r}, model)")
