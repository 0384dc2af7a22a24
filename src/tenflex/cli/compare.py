"""`tenflex compare`: flexible layers beside what else one would do, at the same sizes and from the same inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tenflex.cli.bars import Bars
from tenflex.cli.console import note, show, show_json
from tenflex.cli.errors import InputError
from tenflex.cli.folders import require_writable
from tenflex.cli.named import find_object
from tenflex.cli.network import load_network
from tenflex.cli.options import AUGMENT, DEVICE, INPUTS, MODEL, STATE, argument, command, option
from tenflex.cli.readers import read_names
from tenflex.cli.settings import Settings
from tenflex.cli.tensors import load_inputs, load_labels
from tenflex.compare import compare as run
from tenflex.methods.conditions import DEFAULT_METHODS, Conditions
from tenflex.methods.contest import Contest
from tenflex.methods.registry import METHODS
from tenflex.modes import Modes
from tenflex.reading.figures import PlotsUnavailableError

FIGURES = {"compare.svg": "size", "compare-time.svg": "time"}
"""What is drawn, and against what."""

LABELS = "The classes of the inputs, for accuracies and for training from scratch; as --inputs."


@dataclass(frozen=True, kw_only=True)
class CompareSettings(Settings):
    """What `tenflex compare` is asked for."""

    model: str = argument(*MODEL)
    weights: str | None = option(*STATE)
    device: str | None = option(*DEVICE)
    inputs: str | None = option(*INPUTS)
    labels: str | None = option(LABELS, "FILE")
    test_inputs: str | None = option("Other inputs to judge on, instead of a share of --inputs; as --inputs.", "FILE")
    test_labels: str | None = option("Their classes.", "FILE")
    sizes: str = option("Stored numbers of the smaller networks, as shares or whole numbers.", default="2%,5%,10%")
    methods: str | None = option(
        f"Which to compare, or all: {', '.join(METHODS)}. If not given: {', '.join(DEFAULT_METHODS)}."
    )
    blocks: str | None = option(
        "Names or spans of modules that may be replaced, separated by commas; what `tenflex inspect` suggests if not "
        "given."
    )
    samples: int = option("The most inputs that are used.", default=Conditions.samples)
    held_out: float = option("The share of the inputs that only judge.", default=Conditions.held_out)
    steps: int = option("Steps of what is trained.", default=Conditions.steps)
    finetune: int = option(
        "Steps of fine-tuning to the original's answers, for all; a fifth of the inputs, which no method is given, "
        "chooses the rate then.",
        default=Conditions.finetune,
    )
    out: Path | None = option(
        "A folder for compare.json, compare.svg and compare-time.svg. A comparison that was cut off goes on there.",
        "FOLDER",
    )
    modes: Modes | None = option(
        "Directions along the axes of the inputs through which first layers of every method may see them, such as "
        "Cosine(12, shape=(28, 28)); all if not given."
    )
    augment: str | None = option(*AUGMENT)
    seed: int = option("The seed of all random choices.", default=0)

    def conditions(self) -> Conditions:
        """The same as the library takes it."""
        every = tuple(METHODS) if self.labels else tuple(name for name, one in METHODS.items() if not one.labels)
        names = (
            None if self.methods is None else every if self.methods == "all" else read_names("methods", self.methods)
        )
        blocks = None if self.blocks is None else read_names("blocks", self.blocks)
        others = {name: getattr(self, name) for name in ("samples", "held_out", "steps", "finetune", "seed", "modes")}
        others["augment"] = None if self.augment is None else find_object(self.augment, "augment")
        return Conditions(read_names("sizes", self.sizes), names, blocks, **others)


@command(CompareSettings)
def compare(settings: CompareSettings, json: bool) -> None:
    """Compare flexible layers with other ways to make a network smaller, at the same stored sizes.

    Example: tenflex compare shop.models:classifier --weights trained.safetensors --inputs images.npy --labels
    labels.npy --sizes 2%,5% --out comparison
    """
    if settings.inputs is None:
        raise InputError("--inputs is missing: name the inputs from which the smaller networks are made")
    if settings.out is not None:
        require_writable(settings.out)
    contest = _compared(settings, settings.conditions())
    drawn = _draw(contest, settings.out)
    if json:
        show_json(contest.to_dict())
    else:
        show(str(contest), *drawn)


def _compared(settings: CompareSettings, conditions: Conditions) -> Contest:
    """Load, and compare under a progress bar."""
    network = load_network(settings.model, settings.weights, settings.device)
    labels = None if settings.labels is None else load_labels(settings.labels)
    test = None
    if settings.test_inputs is not None:
        kept = None if settings.test_labels is None else load_labels(settings.test_labels)
        test = load_inputs(settings.test_inputs), kept
    elif settings.test_labels is not None:
        raise InputError("--test-labels is given without --test-inputs: name the inputs that they belong to")
    with Bars(1) as bars:
        return run(
            network,
            load_inputs(settings.inputs or ""),
            labels,
            test=test,
            folder=settings.out,
            on_progress=bars,
            **{name: getattr(conditions, name) for name in conditions.to_dict()},
        )


def _draw(contest: Contest, folder: Path | None) -> list[str]:
    """Draw the figure, if there is a folder and matplotlib; says where all is."""
    if folder is None:
        return []
    try:
        for name, against in FIGURES.items():
            contest.plot(folder / name, against)
    except PlotsUnavailableError as error:
        note(f"The plot was skipped: {error}")
        return [f"Saved in {folder}."]
    except ValueError as error:  # no method gave anything
        note(str(error))
    return [f"Saved in {folder}."]
