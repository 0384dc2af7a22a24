"""`tenflex compress`: replace blocks of a network by flexible layers, and save the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from tenflex.bases import Basis
from tenflex.checkpoint import FOLDER, Checkpoints
from tenflex.cli.bars import Bars
from tenflex.cli.console import note, show, show_json, show_line
from tenflex.cli.errors import InputError, together
from tenflex.cli.folders import require_writable
from tenflex.cli.named import find_object
from tenflex.cli.network import load_network
from tenflex.cli.options import AUGMENT, DEVICE, INPUTS, MODEL, OUT, STATE, argument, command, option
from tenflex.cli.readers import Axes, Blocks, Bytes
from tenflex.cli.settings import Settings, write_settings
from tenflex.cli.tensors import load_inputs
from tenflex.compress import UNPLANNED, Compression
from tenflex.compress import compress as run
from tenflex.coordinates import Coordinates
from tenflex.coordinates.metric import OutputMetric
from tenflex.distributed import is_first
from tenflex.distributed import together as divided_samples
from tenflex.modes import Modes
from tenflex.planning.budget import Budget
from tenflex.planning.plan import DEFAULT_BASIS, Block, Plan
from tenflex.sampling.memory import in_units
from tenflex.sampling.views import Views
from tenflex.solvers import Solver
from tenflex.storage.files import SETTINGS, WEIGHTS, require_own_folder
from tenflex.surgery import find_blocks


@dataclass(frozen=True, kw_only=True)
class CompressSettings(Settings):
    """What `tenflex compress` does; every path is as seen from the folder in which it runs.

    Raises:
        InputError: if neither blocks are named nor a budget is given, or both are.
        ValueError: if a number is out of its range.
    """

    cures: ClassVar[Mapping[str, str]] = {"model": "name the network as package.module:name"}
    importing: ClassVar[tuple[str, ...]] = ("model", "augment")

    model: str = argument(*MODEL)
    weights: str | None = option(*STATE)
    device: str | None = option(*DEVICE)
    inputs: str = option(*INPUTS, default=MISSING)
    blocks: Blocks = option(
        "A block and the size of its layer, as fc1:fc3,rank=40,factor=10 (settings of tenflex.Block: rank, factor, "
        "output_factor, basis, modes, unit, start, output_modes), or a single linear layer as fc1,low_rank=20, or a "
        "convolution as conv1,low_rank=20,form=cpd (svd, cpd, or tucker2 with low_rank=20-10). A name may have "
        "wildcards. Several blocks: repeat the option.",
        "BLOCK",
        None,
        "--block",
    )
    budget: str | None = option(
        "In the place of blocks, what the network may store, compute and lose, such as 5% (of its parameters) or "
        "parameters=5%,macs=10%,lost_agreement=1%: what to replace is chosen by measured curves.",
        "BUDGET",
    )
    out: str = option(*OUT, default=MISSING)
    samples: int = option(f"The most inputs that are used; {Plan.samples} if not given.", default=Plan.samples)
    mask: str | None = option(
        "The argument of the network that tells which positions are padding; attention_mask if not given."
    )
    basis: Basis = option(
        "The functions of every activation, such as BSpline(12); Smooth(BSpline(10), 0.1) if not given.",
        default=DEFAULT_BASIS,
    )
    modes: Modes | None = option(
        "The directions along each axis of its inputs that a block sees, where it names none of its own, such as "
        "Cosine(12, shape=(28, 28)) or Tucker(12); all if not given."
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
    metric: OutputMetric | None = option(
        "How errors of a block's outputs are measured by what the network makes of them: Fisher() or Downstream()."
    )
    mend: bool | None = option(
        "Whether layers of later blocks also make up for what earlier ones lost; those with basis=Own() if not given."
    )
    augment: str | None = option(*AUGMENT)
    copies: int = option("The changed copies of each input that --augment makes; 1 if not given.", default=Plan.copies)
    resume: bool | None = option(
        "Go on with what a run into the same folder solved for before it was killed; the result has the same bits."
    )
    shape: Axes | None = option(
        "The axes of inputs that arrive flat, such as 28,28: for modes that name none, and for what a budget tries."
    )
    views: Views | None = option(
        "What is kept of each sample's Jacobian: whole, or so many products with it, 0 for the outputs alone; chosen "
        "by the number of samples if not given.",
        "VIEWS",
    )

    def __post_init__(self) -> None:
        if not self.blocks and self.budget is None:
            raise InputError(
                "no block is named: give --block NAME,rank=40 or --budget 5%, or set `blocks:` or `budget:` in the "
                "file of --config"
            )
        if self.blocks and self.budget is not None:
            raise InputError("--budget chooses the blocks: leave out --block, or --budget")
        if self.budget is not None:
            Budget.of(self.budget)
        if self.budget is not None and self.modes is not None:
            raise InputError("--modes is for blocks that are named: leave it out with --budget")
        Plan(self.with_modes() or UNPLANNED, **self.others())  # which checks the numbers

    @classmethod
    def replaced(cls, given: Mapping[str, Any]) -> set[str]:
        """Blocks of a file are not for a budget that is given, and the other way round."""
        return {other for name, other in (("budget", "blocks"), ("blocks", "budget")) if name in given}

    def with_modes(self) -> Blocks:
        """The blocks, those without modes of their own with the modes of all."""
        return {
            name: replace(one, modes=one.modes or self.modes) if isinstance(one, Block) else one
            for name, one in (self.blocks or {}).items()
        }

    def others(self) -> dict[str, Any]:
        """The settings of a plan besides its blocks."""
        return {one.name: getattr(self, one.name) for one in fields(Plan) if one.name != "blocks"}


@command(CompressSettings, config="--block or --budget replaces all its blocks.")
def compress(settings: CompressSettings, json: bool) -> None:
    """Replace blocks of a trained network by flexible layers, from unlabelled inputs.

    Under torchrun --nproc-per-node N -m tenflex compress ... samples are divided over N processes.

    Example: tenflex compress shop.models:classifier --weights trained.safetensors --inputs images.npy
    --block fc1:fc3,rank=40,factor=10 --out small
    """
    folder = Path(settings.out)
    network, inputs, augment, _ = together(
        lambda: load_network(settings.model, settings.weights, settings.device),
        lambda: load_inputs(settings.inputs),
        lambda: None if settings.augment is None else find_object(settings.augment, "augment"),
        lambda: _require_folder(folder),
    )
    checkpoints = folder / FOLDER
    if not settings.resume and is_first():
        Checkpoints(checkpoints).remove()
    with divided_samples():
        compression = _compress(network, inputs, augment, settings)
    if not is_first():
        return
    chosen = compression.plan
    settings = replace(
        settings, blocks=chosen.blocks, metric=chosen.metric, copies=chosen.copies, budget=None, resume=None
    )
    compression.save(folder, made_by=settings.model)
    write_settings(folder / SETTINGS, settings.to_dict())
    Checkpoints(checkpoints).remove()
    _show(compression, settings, json)


def _require_folder(folder: Path) -> None:
    require_own_folder(folder)
    require_writable(folder)


def _compress(network: nn.Module, inputs: Any, augment: Any, settings: CompressSettings) -> Compression:
    """Compress under progress bars."""
    with Bars(len(find_blocks(network, settings.blocks)) if settings.blocks else 1) as bars:
        return run(
            network,
            inputs,
            settings.with_modes() or None,
            budget=settings.budget,
            checkpoints=Path(settings.out) / FOLDER,
            augment=augment,
            on_progress=bars if is_first() else None,
            **settings.others(),
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
    show(f"Saved in {settings.out} ({size:,.0f} kB). In Python:")
    show_line(f"  tenflex.load({settings.out!r}, trust={settings.model!r})")
