"""`tenflex finetune`: train a saved result further, without labels."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from tenflex.cli.bars import Bars
from tenflex.cli.console import note, show, show_json
from tenflex.cli.errors import InputError, reading
from tenflex.cli.folders import require_writable
from tenflex.cli.named import find_object
from tenflex.cli.network import load_network
from tenflex.cli.options import AUGMENT, DEVICE, INPUTS, MODEL, OUT, STATE, argument, command, option
from tenflex.cli.settings import Settings
from tenflex.cli.tensors import load_inputs
from tenflex.compress import Compression
from tenflex.finetune import REPLACED, Tuning
from tenflex.storage.files import require_own_folder


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Settings):
    """What `tenflex finetune` does."""

    result: Path = argument("A folder that `tenflex compress` wrote.", "RESULT")
    model: str = argument(*MODEL)
    weights: str | None = option(*STATE)
    device: str | None = option(*DEVICE)
    inputs: str | None = option(*INPUTS)
    out: str | None = option(*OUT)
    train: str = option(
        "What is trained: replaced, the layers in the place of blocks; all; or names separated by commas.",
        default=REPLACED,
    )
    steps: int = option("The most steps.", default=Tuning.steps)
    batch: int = option("The inputs in each step.", default=Tuning.batch)
    rate: float | None = option("The learning rate, where it is not to be found by short trials.")
    temperature: float = option("Scores are compared softened by it; 0 for no scores.", default=Tuning.temperature)
    mix: float = option("The share of inputs that are mixed with another one.", default=Tuning.mix)
    noise: float = option("The size of noise on inputs, as a share of how much they vary.", default=Tuning.noise)
    augment: str | None = option(*AUGMENT)
    samples: int = option("The most inputs that are used.", default=Tuning.samples)
    held_out: float = option("The share of the inputs that is never trained on.", default=Tuning.held_out)
    seed: int = option("The seed of all random choices.", default=Tuning.seed)

    def tuning(self) -> Tuning:
        """The same as the library takes it."""
        same = {one.name: getattr(self, one.name) for one in fields(Tuning) if hasattr(self, one.name)}
        found = Tuning(**{**same, "augment": None, "train": tuple(self.train.split(","))})
        return found if self.augment is None else replace(found, augment=find_object(self.augment, "augment"))


@command(FinetuneSettings)
def finetune(settings: FinetuneSettings, json: bool) -> None:
    """Train a saved result further to the original's answers, without labels.

    Example: tenflex finetune small shop.models:classifier --weights trained.safetensors --inputs images.npy
    --out better
    """
    if settings.inputs is None or settings.out is None:
        missing = "--inputs" if settings.inputs is None else "--out"
        raise InputError(f"{missing} is missing: name the inputs to train on, and the folder to save in")
    tuning, folder = settings.tuning(), Path(settings.out)
    require_own_folder(folder)
    require_writable(folder)
    original = load_network(settings.model, settings.weights, settings.device)
    with reading(settings.result):
        compression = Compression.load(settings.result, original)
    inputs = load_inputs(settings.inputs)
    with Bars(1) as bars:
        better = compression.finetune(inputs, on_progress=bars, **vars(tuning))
    better.save(folder)
    _show(better, settings.out, json)


def _show(better: Compression, out: str, json: bool) -> None:
    report = better.report
    if json:
        for line in report.warnings:
            note(line)
        show_json({"out": out, "report": report.to_dict()})
    else:
        show(report, *report.remarks, *report.warnings, f"Saved in {out}.")
