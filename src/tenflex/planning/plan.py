"""What is asked of a compression: which blocks, of what size, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from tenflex.bases import Basis, BSpline, Smooth, basis_from_dict, basis_to_dict
from tenflex.checks import near_names, require_number, require_rank, require_share, require_whole
from tenflex.coordinates import COORDINATES, Coordinates
from tenflex.sampling.jacobian import LOST_ENERGY
from tenflex.sampling.memory import MOST_MEMORY
from tenflex.solvers import SOLVERS, Solver
from tenflex.split import SHARE

DEFAULT_BASIS = Smooth(BSpline(10), 0.1)
"""Ten cubic B-splines a node; the light penalty tames the ends where few samples lie."""


@dataclass(frozen=True)
class Block:
    """The flexible layers that take the place of a block.

    Args:
        rank: The number of nodes, r; or those of each layer, `(r1, ..., rL)`, for several flexible layers.
        factor: Store `V = B A` with B `(m, factor)`; None for a full V. Saves most when inputs are many.
        output_factor: Store `W = D E` with D `(n, output_factor)`; None for a full W.
        basis: The functions of every activation; None for the basis of the whole compression.

    Raises:
        TypeError: if `basis` is not a basis.
        ValueError: if a size is not a whole number of at least 1.
    """

    rank: int | tuple[int, ...]
    factor: int | None = None
    output_factor: int | None = None
    basis: Basis | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        """The number of nodes of each layer, from the inputs to the outputs."""
        return self.rank if isinstance(self.rank, tuple) else (self.rank,)

    def __post_init__(self) -> None:
        require_rank(self.rank)
        for name in ("factor", "output_factor"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), at_least=1)
        if self.basis is not None and not isinstance(self.basis, Basis):
            raise TypeError(f"basis must be a basis such as BSpline(10), got {self.basis!r}")


@dataclass(frozen=True)
class Plan:
    """All settings of a compression, resolved; to and from JSON.

    Args:
        blocks: For each block, by name or wildcard, its layer.
        samples: The most inputs that are used.
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

    Raises:
        TypeError: if `blocks` is not a mapping of names to blocks (`Block`), or a setting is of another kind.
        ValueError: if it is empty, or a number is out of its range.
    """

    blocks: Mapping[str, Block]
    samples: int = 2000
    basis: Basis = field(default_factory=lambda: DEFAULT_BASIS)
    coupling: float | None = None
    coordinates: Coordinates | None = None
    lost_energy: float = LOST_ENERGY
    held_out: float = SHARE
    memory: int = MOST_MEMORY
    solver: Solver[Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, Mapping):
            raise TypeError(f'blocks must map names to Blocks, as {{"fc1:fc3": Block(rank=40)}}, got {self.blocks!r}')
        object.__setattr__(self, "blocks", dict(self.blocks))  # the caller's may change later
        if not self.blocks:
            raise ValueError('no block was named: expected at least one, as {"fc1:fc3": Block(rank=40)}')
        for name, block in self.blocks.items():
            if not isinstance(name, str) or not isinstance(block, Block):
                raise TypeError(f"blocks must map names to Blocks, got {name!r}: {block!r}")
        if not isinstance(self.basis, Basis):
            raise TypeError(f"basis must be a basis such as BSpline(10), got {self.basis!r}")
        if self.coordinates is not None and not isinstance(self.coordinates, Coordinates):
            raise TypeError(f"coordinates must be Sensitivity() or Whiten(), got {self.coordinates!r}")
        if self.solver is not None and not isinstance(self.solver, Solver):
            raise TypeError(f"expected a solver such as ConstrainedALS(), got {self.solver!r}")
        require_share("lost_energy", self.lost_energy, below=1)
        require_share("held_out", self.held_out, at_most=0.5)
        require_whole("samples", self.samples, at_least=2)
        require_whole("memory", self.memory, at_least=1)
        if self.coupling is not None:
            require_number("coupling", self.coupling, at_least=0)
        require_whole("seed", self.seed, at_least=0)

    @classmethod
    def of(cls, blocks: Mapping[str, Block] | Plan, settings: Mapping[str, Any]) -> Plan:
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
        """Plain JSON values."""
        return {
            "blocks": {name: _block_to_dict(block) for name, block in self.blocks.items()},
            "samples": self.samples,
            "basis": basis_to_dict(self.basis),
            "coupling": self.coupling,
            "coordinates": None if self.coordinates is None else COORDINATES.to_dict(self.coordinates),
            "lost_energy": self.lost_energy,
            "held_out": self.held_out,
            "memory": self.memory,
            "solver": _solver_to_dict(self.solver),
            "seed": self.seed,
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
        if "basis" in settings:
            settings["basis"] = basis_from_dict(settings["basis"])
        if settings.get("coordinates") is not None:
            settings["coordinates"] = COORDINATES.from_dict(settings["coordinates"])
        if settings.get("solver") is not None:
            settings["solver"] = SOLVERS.from_dict(settings["solver"])
        return cls(**settings)


def _solver_to_dict(solver: Solver[Any] | None) -> dict[str, Any] | None:
    """A solver that is not ours is only named: no file could bring it back, and reading it says so."""
    if solver is None or SOLVERS.holds(solver):
        return None if solver is None else SOLVERS.to_dict(solver)
    return {"family": f"{type(solver).__module__}.{type(solver).__qualname__}", "settings": repr(solver)}


def _block_to_dict(block: Block) -> dict[str, Any]:
    rank = list(block.rank) if isinstance(block.rank, tuple) else block.rank
    basis = None if block.basis is None else basis_to_dict(block.basis)
    return {**asdict(block), "rank": rank, "basis": basis}


def _block_from_dict(name: str, saved: Any) -> Block:
    settings = dict(_known(saved, Block, f"block {name!r}"))
    if "rank" not in settings:
        raise ValueError(f"block {name!r} needs a rank, got {settings}")
    if isinstance(settings["rank"], list):
        settings["rank"] = tuple(settings["rank"])
    if settings.get("basis") is not None:
        settings["basis"] = basis_from_dict(settings["basis"])
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
