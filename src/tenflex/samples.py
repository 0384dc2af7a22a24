"""What a map does at S points: inputs, outputs, Jacobians or products with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.checks import require_finite, require_floating, require_whole
from tenflex.covariance import as_range, require_covariance, selected, transformed
from tenflex.reduction import Reduction
from tenflex.shown import Shown
from tenflex.split import Split, groups_of_rows, split_samples
from tenflex.sums import mean_of


@dataclass(frozen=True, eq=False, repr=False)
class Samples(Shown):
    """Inputs, outputs and Jacobians of a map `f: R^m -> R^n` at `S` points, checked once.

    Whole Jacobians are `S n m` numbers. In their place there may be `k` products `J_s^T u` a sample with random
    combinations `u` of the outputs, of which the mean of `u u^T` is the identity: views of the Jacobians, whose squared
    errors have the mean of those of the Jacobians. With `k = 0` there are outputs only.

    Args:
        inputs: The points, `(S, m)`.
        outputs: `f` there, `(S, n)`.
        jacobians: `Df` there, `(S, n, m)`; or, where there are directions, the products `J_s^T u`, `(S, k, m)`.
        reduction: The coordinates these numbers are in, when they were reduced while they were sampled.
        hessians: `D^2 f` there, `(S, n, m, m)`; None where second derivatives are not known.
        covariance: Of the errors of the Jacobians' entries, row by row within a sample, in the form that its shape
            tells: the variances `(S, n, m)`, a block for each sample `(S, n m, n m)`, or all together
            `(S n m, S n m)`; None where all errors count the same.
        groups: Whole numbers that tell which samples belong together, `(S,)`, such as the positions of one sequence:
            they are held out together or not at all, unless they are too few for that: `Problem` warns then. None
            where only equal inputs do.
        aside: How many samples at the end are for validation and how many for the test, where the coordinates were
            chosen without them; None where samples are still to be split.
        directions: u, `(S, k, n)`; None where the Jacobians are whole.
        pilot: Whole Jacobians of some combinations of the outputs at some of the fitted points, in the same coordinates
            of the inputs: what solvers begin with that need whole ones. Only beside views.
        names: What the m inputs and the n outputs are called, in texts, formulas and plots; x1, x2, ... and
            f1, f2, ... if None.

    Raises:
        TypeError: if one of them is not a floating-point tensor, or the groups are no whole numbers.
        ValueError: if shapes disagree, there are fewer than two samples, a number is NaN or infinite, the covariance
            is not positive definite, or there are Hessians or a covariance beside views.

    Example:
        >>> x = torch.rand(30, 1, dtype=torch.float64)
        >>> samples = Samples(x, x**2, 2 * x[:, :, None])
        >>> samples
        Samples(inputs=float64[30, 1], outputs=float64[30, 1], jacobians=float64[30, 1, 1])
        >>> samples.called((("speed",), ("power",))).names
        (('speed',), ('power',))
    """

    inputs: Float[Tensor, "S m"]
    outputs: Float[Tensor, "S n"]
    jacobians: Float[Tensor, "S k m"]
    reduction: Reduction | None = None
    hessians: Float[Tensor, "S n m m"] | None = None
    covariance: Float[Tensor, "..."] | None = None
    groups: Int[Tensor, " S"] | None = None
    aside: tuple[int, int] | None = None
    directions: Float[Tensor, "S k n"] | None = None
    pilot: Samples | None = None
    names: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        named = {"inputs": self.inputs, "outputs": self.outputs, "jacobians": self.jacobians}
        for name, tensor in named.items():
            require_floating(name, tensor)
        shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
        inputs, outputs = shapes["inputs"], shapes["outputs"]
        rows = outputs[-1:] if self.directions is None else self.jacobians.shape[-2:-1]
        if len(inputs) != 2 or len(outputs) != 2 or shapes["jacobians"] != (inputs[0], *rows, inputs[-1]):
            raise ValueError(f"expected inputs (S, m), outputs (S, n) and jacobians (S, n, m), got {shapes}")
        if outputs[0] != inputs[0]:
            raise ValueError(f"inputs and outputs must have as many samples, got {inputs[0]} and {outputs[0]}")
        if inputs[0] < 2:
            raise ValueError(
                f"at least 2 samples are needed, got {inputs[0]}: pass more inputs (a few hundred are usual)"
            )
        if inputs[1] < 1 or outputs[1] < 1:
            raise ValueError(f"a map needs at least one input and one output, got {shapes}")
        for name, tensor in named.items():
            require_finite(name, tensor)
        if self.directions is not None:
            self._check_views(self.directions)
        elif self.pilot is not None:
            raise ValueError("a pilot stands beside views: expected directions, got whole Jacobians")
        if self.hessians is not None:
            self._check_hessians(self.hessians)
        if self.covariance is not None:
            require_covariance(self.covariance, *self.jacobians.shape)
        if self.groups is not None:
            require_groups(self.groups, len(self))
        if self.names is not None:
            m = inputs[1] if self.reduction is None else len(self.reduction.mean)
            require_names(self.names, m, outputs[1])
        for count in self.aside or ():
            require_whole("each number of aside", count, at_least=0)
        if self.aside is not None and len(self.aside) != 2:
            raise ValueError(f"aside must be two numbers, of validation and of test samples, got {self.aside}")
        if self.aside is not None and sum(self.aside) >= len(self):
            raise ValueError(f"aside must leave some of {len(self)} samples to fit, got {self.aside}")

    def _check_views(self, directions: Tensor) -> None:
        require_floating("directions", directions)
        expected = len(self), self.jacobians.shape[1], self.outputs.shape[1]
        if tuple(directions.shape) != expected:
            raise ValueError(f"directions must have the shape (S, k, n) = {expected}, got {tuple(directions.shape)}")
        require_finite("directions", directions)
        if self.hessians is not None or self.covariance is not None:
            raise ValueError("hessians and a covariance stand beside whole Jacobians: leave them or directions out")
        if self.pilot is not None and (self.pilot.views is not None or self.pilot.sizes[2] != self.sizes[2]):
            raise ValueError("a pilot must have whole Jacobians in the same inputs")

    def _check_hessians(self, hessians: Tensor) -> None:
        require_floating("hessians", hessians)
        count, n, m = self.jacobians.shape
        if tuple(hessians.shape) != (count, n, m, m):
            raise ValueError(
                f"hessians must have the shape (S, n, m, m) = {(count, n, m, m)}, got {tuple(hessians.shape)}"
            )
        require_finite("hessians", hessians)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The numbers of samples, outputs and inputs: S, n and m."""
        return len(self.inputs), self.outputs.shape[1], self.inputs.shape[1]

    @property
    def views(self) -> int | None:
        """How many products with the Jacobian there are of every sample; None where the Jacobians are whole."""
        return None if self.directions is None else self.directions.shape[1]

    @property
    def bytes_of_jacobians(self) -> int:
        """What the Jacobians take in memory, or the views of them with their directions."""
        directions = 0 if self.directions is None else self.directions.nbytes
        return self.jacobians.nbytes + directions

    def select(self, index: Int[Tensor, " some"]) -> Samples:
        """The samples at `index`, in that order; of a full covariance the part that belongs to them.

        Where they follow each other as they do here, they are views: nothing is copied.
        """
        part = as_range(index, len(self))
        hessians = None if self.hessians is None else self.hessians[part]
        matching = None if self.covariance is None else selected(self.covariance, index, len(self))
        groups = None if self.groups is None else self.groups[part]
        x, F, J = self.inputs[part], self.outputs[part], self.jacobians[part]
        directions = None if self.directions is None else self.directions[part]
        return Samples(
            x, F, J, self.reduction, hessians, matching, groups, directions=directions, pilot=self.pilot
        ).called(self.names)

    def split(self, share: float) -> Split:
        """Which samples are fitted and which are held out, unless that was decided when they were sampled.

        Args:
            share: The share to hold out, 0 to fit all; see `split_samples`.
        """
        if self.aside is None or share == 0:
            return split_samples(groups_of_rows((self.inputs,)) if self.groups is None else self.groups, share)
        validation, test = self.aside
        order = torch.arange(len(self), device=self.inputs.device)
        return Split(*order.split([len(self) - validation - test, validation, test]))

    def reduced(self, reduction: Reduction, index: Int[Tensor, " some"] | None = None) -> Samples:
        """The samples in the coordinates of a reduction, in float64; all of them, or those at `index` in that order.

        Raises:
            ValueError: if there are views, and the reduction measures outputs in units of their own: views are random
                in the units of the outputs as they are.
        """
        if self.directions is not None:
            return self._views_reduced(reduction, self.directions, index)
        aside = self.aside if index is None else None
        if index is None:
            index = torch.arange(len(self), device=self.inputs.device)
        part = as_range(index, len(self))
        hessians = None if self.hessians is None else reduction.hessians(self.hessians[part])
        matching = None if self.covariance is None else selected(self.covariance, index, len(self))
        return Samples(
            reduction.inputs(self.inputs[part]),
            reduction.outputs(self.outputs[part]),
            reduction.jacobians(self.jacobians, index),
            reduction,
            hessians,
            None if matching is None else transformed(matching, reduction.output_matrix, reduction.up),
            None if self.groups is None else self.groups[part],
            aside,
            names=self.names,
        )

    def _views_reduced(self, reduction: Reduction, directions: Tensor, index: Int[Tensor, " some"] | None) -> Samples:
        scale = reduction.output_scale
        if scale is None:
            raise ValueError(
                "views of the Jacobians need coordinates with one unit for all outputs, such as Standardize() or "
                "Sensitivity()"
            )
        part = slice(None) if index is None else as_range(index, len(self))
        pilot = self.pilot
        if pilot is not None:
            centred = scale * (pilot.outputs - mean_of(pilot.outputs)).to(scale)
            pilot = Samples(reduction.inputs(pilot.inputs), centred, scale * (pilot.jacobians.to(scale) @ reduction.up))
        return Samples(
            reduction.inputs(self.inputs[part]),
            reduction.outputs(self.outputs[part]),
            scale * (self.jacobians[part].to(scale) @ reduction.up),
            reduction,
            groups=None if self.groups is None else self.groups[part],
            aside=self.aside if index is None else None,
            directions=directions[part].to(scale),
            pilot=pilot,
            names=self.names,
        )

    @property
    def original_inputs(self) -> Float[Tensor, "S m"]:
        """The inputs in the coordinates in which a solution's factors are given."""
        one = self.reduction
        return self.inputs if one is None else one.mean + self.inputs @ one.up.mT

    @property
    def original_outputs(self) -> Float[Tensor, "S n"]:
        """The outputs in the coordinates in which a solution's factors are given."""
        one = self.reduction
        return self.outputs if one is None else one.original_outputs(self.outputs)

    def called(self, names: tuple[tuple[str, ...], tuple[str, ...]] | None) -> Samples:
        """The same samples with names of the inputs and of the outputs.

        Raises:
            ValueError: if there are not as many different names as there are inputs, or outputs.
        """
        return self if names == self.names else replace(self, names=names)

    def unweighted(self) -> Samples:
        """The samples without their covariance: all errors of the Jacobians count the same."""
        return replace(self, covariance=None)


def require_groups(groups: object, count: int) -> None:
    """Raise unless `groups` tells the group of each of `count` samples."""
    if (
        not isinstance(groups, Tensor)
        or groups.is_floating_point()
        or groups.is_complex()
        or groups.dtype == torch.bool
    ):
        got = groups.dtype if isinstance(groups, Tensor) else type(groups).__name__
        raise TypeError(f"groups must be a tensor of whole numbers, got {got}")
    if tuple(groups.shape) != (count,) or bool((groups < 0).any()):
        raise ValueError(
            f"groups must hold a number of at least 0 for each of {count} samples, got the shape "
            f"{tuple(groups.shape)}{'' if tuple(groups.shape) != (count,) else ' with negative ones'}"
        )


def require_names(names: object, m: int, n: int) -> None:
    """Raise ValueError unless there are m different names of inputs and n of outputs."""
    good = isinstance(names, tuple) and len(names) == 2 and all(isinstance(one, tuple) for one in names)
    if not good or [len(set(one)) for one in names] != [m, n] or [len(one) for one in names] != [m, n]:  # type: ignore[attr-defined] # a tuple
        raise ValueError(f"names must be {m} different names of the inputs and {n} of the outputs, got {names!r}")
    if not all(isinstance(one, str) and one for each in names for one in each):  # type: ignore[attr-defined] # a tuple
        raise ValueError(f"names must be texts, got {names!r}")
