"""What is asked of a compression: which blocks, of what size, and how."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

from tenflex.bases import BASES, Basis, BSpline, Smooth
from tenflex.checks import near_names, require_number, require_rank, require_share, require_whole
from tenflex.coordinates import COORDINATES, Coordinates
from tenflex.coordinates.metric import METRICS, OutputMetric
from tenflex.families import Families, by_name
from tenflex.kept import Own
from tenflex.modes import MODES, Modes
from tenflex.planning.kernels import FORMS
from tenflex.sampling.jacobian import LOST_ENERGY
from tenflex.sampling.memory import MOST_MEMORY
from tenflex.sampling.views import Views, require_views
from tenflex.solvers import SOLVERS, Solver
from tenflex.split import SHARE
from tenflex.units import UNITS

BLOCK_BASES = Families(BASES.what, BASES.example, ChainMap(by_name(Own), BASES.members))
"""What a block's activations may be: of a basis, or the original's own."""

DEFAULT_BASIS = Smooth(BSpline(10), 0.1)
"""Ten cubic B-splines a node; the light penalty tames the ends where few samples lie."""


@dataclass(frozen=True)
class Block:
    """The flexible layers that take the place of a block.

    Args:
        rank: The number of nodes, r; or those of each layer, `(r1, ..., rL)`, for several flexible layers.
        factor: Store `V = B A` with B `(m, factor)`; None for a full V. Saves most when inputs are many.
        output_factor: Store `W = D E` with D `(n, output_factor)`; None for a full W.
        basis: The functions of every activation; None for the basis of the whole compression; `Own()` to keep the
            original's own activation functions, with the best of the block's own nodes.
        modes: The directions along each axis of an input that V sees, such as `Cosine(12, shape=(28, 28))` or
            `Tucker(12)`; None for all.
        unit: What one sample of the block is: "example", "position" (of a sequence) or "patch" (of an image or
            signal); None to find out.
        start: What the layers are solved from: "cpd", the solver's own start; "kept", the best of the block's own
            nodes; None for both where the block is one layer of nodes and the maps are full, the error on validation
            samples deciding.
        output_modes: The directions along each axis of an output, an image or a signal, that W gives; None for all.

    Raises:
        TypeError: if `basis` is not a basis, or `modes` or `output_modes` are no modes.
        ValueError: if a size is not a whole number of at least 1, the unit or the start is unknown, or what is asked
            for does not go together.

    Example:
        >>> result = compress(model, inputs, {"0:2": Block(rank=(3, 2), basis=Monomial(3))})
        >>> result.solutions["0:2"].factors.ranks
        (3, 2)
    """

    rank: int | tuple[int, ...]
    factor: int | None = None
    output_factor: int | None = None
    basis: Basis | Own | None = None
    modes: Modes | None = None
    unit: str | None = None
    start: Literal["cpd", "kept"] | None = None
    output_modes: Modes | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        """The number of nodes of each layer, from the inputs to the outputs."""
        return self.rank if isinstance(self.rank, tuple) else (self.rank,)

    def __post_init__(self) -> None:
        require_rank(self.rank)
        for name in ("factor", "output_factor"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), at_least=1)
        if self.basis is not None and not isinstance(self.basis, (Basis, Own)):
            raise TypeError(f"basis must be a basis such as BSpline(10), or Own(), got {self.basis!r}")
        if self.start not in (None, "cpd", "kept"):
            raise ValueError(f"start must be 'cpd' or 'kept', or be left out, got {self.start!r}")
        if isinstance(self.basis, Own):
            for name in ("factor", "output_factor", "modes", "output_modes"):
                if getattr(self, name) is not None:
                    raise ValueError(f"layers of the block's own nodes have full maps, got {name}: leave it out")
            if self.start == "cpd":
                raise ValueError("layers of the block's own nodes start from them, got start='cpd': leave it out")
        for name in ("modes", "output_modes"):
            one = getattr(self, name)
            if one is not None and not isinstance(one, Modes):
                raise TypeError(f"{name} must be modes such as Cosine(12) or Tucker(12), got {one!r}")
        if self.unit is not None and self.unit not in tuple(UNITS):
            raise ValueError(f"unit must be one of {', '.join(map(repr, UNITS))} or None, got {self.unit!r}")
        for name in ("modes", "output_modes"):
            if getattr(self, name) is not None and self.start == "kept":
                raise ValueError(f"the block's own nodes have no modes: leave out start or {name}")


LOW_RANK = "low_rank"
"""What the rank of thin layers is called among settings."""


@dataclass(frozen=True)
class LowRank:
    """Thin layers in the place of one, a linear layer or a convolution: those of the least error for what arrives.

    Of a linear layer there are two, as data-aware SVD finds them. A convolution is of low rank in several ways.

    Args:
        rank: The width between them; for `"tucker2"` two, of outputs and of inputs.
        form: What a kernel is taken for: "svd", a matrix that acts on patches, which gives a convolution to few
            channels and one of single positions; "cpd", a sum of products of vectors, which gives single positions,
            one axis after the other with channels to themselves, and single positions (Lebedev et al. 2015);
            "tucker2", a small kernel between channels that are combined (Kim et al. 2016).

    Raises:
        ValueError: if a rank is not a whole number of at least 1, the form is unknown, or they do not go together.

    Example:
        >>> compress(model, inputs, {"0": LowRank(2)}).report.blocks[0].after.parameters  # 2 (6 + 20) and the bias
        72
        >>> images, network = torch.randn(30, 4, 8, 8), nn.Sequential(nn.Conv2d(4, 8, 3)).eval()
        >>> thin = compress(network, images, {"0": LowRank(6, "cpd")})
        >>> thin.report.after.parameters  # 6 (8 + 4 + 3 + 3) and the bias, of 296
        116
    """

    rank: int | tuple[int, int]
    form: str = "svd"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {self.form!r}")
        if FORMS[self.form].several != isinstance(self.rank, tuple) or len(self.ranks) > 2:
            raise ValueError(
                f"rank must be {'two numbers' if FORMS[self.form].several else 'one number'} for the form "
                f"{self.form!r}, got {self.rank!r}"
            )
        for one in self.ranks:
            require_whole("rank", one, at_least=1)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The widths."""
        return self.rank if isinstance(self.rank, tuple) else (self.rank,)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        rank = list(self.rank) if isinstance(self.rank, tuple) else self.rank
        return {LOW_RANK: rank, **({} if self.form == "svd" else {"form": self.form})}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> LowRank:
        """What `to_dict` described.

        Raises:
            ValueError: if a setting is unknown or out of its range.
        """
        if not set(saved) <= {LOW_RANK, "form"}:
            raise ValueError(f"thin layers have the settings {LOW_RANK} and form, got {dict(saved)!r}")
        rank = saved[LOW_RANK]
        return cls(tuple(rank) if isinstance(rank, list) else rank, saved.get("form", "svd"))


Placed: TypeAlias = Block | LowRank
"""What can be asked for in the place of a block."""


@dataclass(frozen=True)
class Plan:
    """All settings of a compression, resolved; to and from JSON.

    Args:
        blocks: For each block, by name or wildcard, its layer: a `Block`, or for a single linear layer or
            convolution a `LowRank`.
        samples: The most inputs that are used, and the most positions or patches of them.
        mask: The argument of the network that tells which positions of a sequence are padding, which are not sampled;
            None for `attention_mask`, where there is one. If its name ends with `padding_mask`, padding is where it is
            true; else where it is 0, or negative if it is to be added.
        basis: The functions of every activation, where a block names no other.
        coupling: The weight of the outputs' relative error beside the Jacobians'; None for 1 to 10 by the number of
            samples, and then for three times as much or a third of it where the validation samples gain.
        coordinates: The rule that chooses the coordinates of a block's inputs; None for `Sensitivity()`, of which the
            shrinkage is chosen in the same way. With a solver of one's own nothing is chosen.
        lost_energy: The share of the Jacobians' energy in these coordinates that may be dropped with the directions in
            which a block does least; more makes it faster.
        held_out: The share of the samples that are never fitted, in whole examples: on half of them starts and steps
            are chosen, and the other half tells the error.
        memory: The bytes that sampling a block and solving for its layer may take at their peak, beside the network and
            what arrives at the block.
        solver: The algorithm; None for the default recipe.
        seed: Of all random choices.
        metric: How errors of a block's outputs are measured, `Fisher()` or `Downstream()`; None to count all alike or,
            within a budget, by `Downstream()` if a few layers that are made both ways lose less then.
        mend: Whether the layer of a later block also makes up for what earlier ones lost, where its output is added to
            something that goes around it; None to do so for layers of a block's own nodes.
        copies: The changed copies of each input, besides itself, that an `augment` makes; 0 without one.
        shape: The axes of inputs that arrive flat, such as `(28, 28)`: for modes that name none, and for those that a
            budget tries.
        views: What is kept of each sample's Jacobian: "whole", or so many products with random combinations of the
            outputs, 0 for the outputs alone; None to choose by the sizes and the number of samples (`views_for`).

    Raises:
        TypeError: if `blocks` is not a mapping of names to blocks (`Block`), or a setting is of another kind.
        ValueError: if it is empty, or a number is out of its range.

    Example:
        >>> plan = Plan({"0:2": Block(rank=3)}, samples=500, seed=1)
        >>> Plan.from_dict(plan.to_dict()) == plan
        True
    """

    blocks: Mapping[str, Placed]
    samples: int = 2000
    mask: str | None = None
    basis: Basis = field(default_factory=lambda: DEFAULT_BASIS)
    coupling: float | None = None
    coordinates: Coordinates | None = None
    lost_energy: float = LOST_ENERGY
    held_out: float = SHARE
    memory: int = MOST_MEMORY
    solver: Solver[Any] | None = None
    seed: int = 0
    metric: OutputMetric | None = None
    mend: bool | None = None
    copies: int = 0
    views: Views | None = None
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, Mapping):
            raise TypeError(f'blocks must map names to Blocks, as {{"fc1:fc3": Block(rank=40)}}, got {self.blocks!r}')
        object.__setattr__(self, "blocks", dict(self.blocks))  # the caller's may change later
        if not self.blocks:
            raise ValueError('no block was named: expected at least one, as {"fc1:fc3": Block(rank=40)}')
        for name, block in self.blocks.items():
            if not isinstance(name, str) or not isinstance(block, (Block, LowRank)):
                raise TypeError(f"blocks must map names to Blocks, got {name!r}: {block!r}")
        if not isinstance(self.basis, Basis):
            raise TypeError(f"basis must be a basis such as BSpline(10), got {self.basis!r}")
        if self.coordinates is not None and not isinstance(self.coordinates, Coordinates):
            raise TypeError(f"coordinates must be Sensitivity() or Whiten(), got {self.coordinates!r}")
        if self.solver is not None and not isinstance(self.solver, Solver):
            raise TypeError(f"expected a solver such as ConstrainedALS(), got {self.solver!r}")
        if self.metric is not None and not isinstance(self.metric, OutputMetric):
            raise TypeError(f"metric must be Fisher() or Downstream(), got {self.metric!r}")
        if self.mend not in (None, True, False):
            raise TypeError(f"mend must be True, False or None, got {self.mend!r}")
        require_share("lost_energy", self.lost_energy, below=1)
        require_share("held_out", self.held_out, at_most=0.5)
        require_whole("samples", self.samples, at_least=2)
        require_whole("memory", self.memory, at_least=1)
        if self.mask is not None and not isinstance(self.mask, str):
            raise TypeError(f"mask must be the name of an argument, got {self.mask!r}")
        if self.views is not None:
            require_views(self.views)
        if self.coupling is not None:
            require_number("coupling", self.coupling, at_least=0)
        require_whole("seed", self.seed, at_least=0)
        require_whole("copies", self.copies, at_least=0)
        self._require_shape()

    def _require_shape(self) -> None:
        """Raise unless the axes of flat inputs are whole numbers; a list becomes a tuple."""
        if self.shape is None:
            return
        if not isinstance(self.shape, (tuple, list)) or not self.shape:
            raise TypeError(f"shape must be the axes of flat inputs, such as (28, 28), got {self.shape!r}")
        for one in self.shape:
            require_whole("each axis of shape", one, at_least=1)
        object.__setattr__(self, "shape", tuple(self.shape))

    def seen(self, block: Block, in_shape: tuple[int, ...]) -> Block:
        """A block whose modes know the axes of its inputs, where these arrive flat and the plan tells them."""
        if self.shape is None or block.modes is None or block.modes.shape is not None:
            return block
        fits = len(in_shape) == 1 and math.prod(self.shape) == in_shape[0]
        return replace(block, modes=replace(block.modes, shape=self.shape)) if fits else block

    @property
    def most_rows(self) -> int:
        """The most samples of a block: of inputs, and of as many times as many changed copies."""
        return self.samples * (1 + self.copies)

    @classmethod
    def of(cls, blocks: Mapping[str, Placed] | Plan, settings: Mapping[str, Any]) -> Plan:
        """A plan from its blocks and its other settings by name, or from another plan and what is to be changed.

        Raises:
            TypeError: if a setting is unknown or of the wrong type.
            ValueError: if a number is out of its range.
        """
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in names:
                raise TypeError(f"compress has no setting {name!r}{near_names(name, names)}")
        return replace(blocks, **settings) if isinstance(blocks, Plan) else cls(blocks, **settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what no file could bring back is only named, and reading it says so."""
        return {
            "blocks": {name: _block_to_dict(block) for name, block in self.blocks.items()},
            "samples": self.samples,
            "mask": self.mask,
            "basis": BASES.described(self.basis),
            "coupling": self.coupling,
            "coordinates": None if self.coordinates is None else COORDINATES.described(self.coordinates),
            "lost_energy": self.lost_energy,
            "held_out": self.held_out,
            "memory": self.memory,
            "solver": None if self.solver is None else SOLVERS.described(self.solver),
            "seed": self.seed,
            "metric": None if self.metric is None else METRICS.described(self.metric),
            "mend": self.mend,
            "copies": self.copies,
            "views": self.views,
            "shape": None if self.shape is None else list(self.shape),
        }

    @classmethod
    def from_dict(cls, saved: Any) -> Plan:
        """The plan that `to_dict` described; settings that are left out have their defaults.

        Raises:
            ValueError: if a setting is unknown or out of its range.
        """
        settings = dict(_known(saved, cls, "a plan"))
        blocks = settings.get("blocks", {})
        if not isinstance(blocks, Mapping):
            raise ValueError(f'blocks must map names to settings, as {{"fc1:fc3": {{"rank": 40}}}}, got {blocks!r}')
        settings["blocks"] = {str(name): _block_from_dict(str(name), block) for name, block in blocks.items()}
        for name, families in OF_FAMILIES.items():
            if settings.get(name) is not None or (name == "basis" and name in settings):
                settings[name] = families.from_dict(settings[name])
        return cls(**settings)


OF_FAMILIES = {"basis": BASES, "coordinates": COORDINATES, "solver": SOLVERS, "metric": METRICS}
"""The settings of a plan that are values of families."""


def foreign_settings(saved: Any) -> dict[str, Any]:
    """The settings of a plan, in plain values, that are of a family of someone's own which is not known here."""
    given = saved if isinstance(saved, Mapping) else {}
    return {name: given[name] for name, one in OF_FAMILIES.items() if name in given and one.is_foreign(given[name])}


def _block_to_dict(block: Placed) -> dict[str, Any]:
    if isinstance(block, LowRank):
        return block.to_dict()
    rank = list(block.rank) if isinstance(block.rank, tuple) else block.rank
    basis = None if block.basis is None else BLOCK_BASES.described(block.basis)
    modes = {
        name: None if one is None else MODES.described(one)
        for name, one in (("modes", block.modes), ("output_modes", block.output_modes))
    }
    return {**asdict(block), "rank": rank, "basis": basis, **modes}


def _block_from_dict(name: str, saved: Any) -> Placed:
    if isinstance(saved, Mapping) and LOW_RANK in saved:
        return LowRank.from_dict(saved)
    settings = dict(_known(saved, Block, f"block {name!r}"))
    if "rank" not in settings:
        raise ValueError(f"block {name!r} needs a rank, got {settings}")
    if isinstance(settings["rank"], list):
        settings["rank"] = tuple(settings["rank"])
    if settings.get("basis") is not None:
        settings["basis"] = BLOCK_BASES.from_dict(settings["basis"])
    for key in ("modes", "output_modes"):
        if settings.get(key) is not None:
            settings[key] = MODES.from_dict(settings[key])
    return Block(**settings)


def _known(saved: Any, owner: type, what: str) -> Mapping[str, Any]:
    """`saved`, if it is a mapping of settings that `owner` has."""
    names = [field.name for field in fields(owner)]
    if not isinstance(saved, Mapping):
        raise ValueError(f"{what} must be a mapping of settings ({', '.join(names)}), got {saved!r}")
    for name in saved:
        if name not in names:
            raise ValueError(f"{what} has no setting {name!r}{near_names(str(name), names)}")
    return saved
