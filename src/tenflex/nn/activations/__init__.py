"""Activation functions with trainable parameters, each node its own: the families of the survey, and two layers.

References:
    Apicella, Donnarumma, Isgro, Prevete, "A survey on modern trainable activation functions", 2021,
    https://arxiv.org/abs/2005.00817
"""

from tenflex.nn.activations.base import Channelwise, TrainableActivation
from tenflex.nn.activations.kan import KANLayer
from tenflex.nn.activations.maxout import Maxout
from tenflex.nn.activations.rational import RationalActivation
from tenflex.nn.activations.rectified import APL, PELU, PReLU, SReLU, Swish
from tenflex.nn.activations.sums import (
    KAF,
    VAF,
    FourierActivation,
    HermiteActivation,
    PolynomialActivation,
    SplineActivation,
)

FAMILIES: dict[str, type[TrainableActivation]] = {
    "prelu": PReLU,
    "pelu": PELU,
    "swish": Swish,
    "srelu": SReLU,
    "apl": APL,
    "vaf": VAF,
    "kaf": KAF,
    "polynomial": PolynomialActivation,
    "fourier": FourierActivation,
    "hermite": HermiteActivation,
    "spline": SplineActivation,
    "rational": RationalActivation,
}
"""Those that are functions of single nodes, by a short name; `Maxout` and `KANLayer` are layers."""

__all__ = [
    "APL",
    "FAMILIES",
    "KAF",
    "PELU",
    "VAF",
    "Channelwise",
    "FourierActivation",
    "HermiteActivation",
    "KANLayer",
    "Maxout",
    "PReLU",
    "PolynomialActivation",
    "RationalActivation",
    "SReLU",
    "SplineActivation",
    "Swish",
    "TrainableActivation",
]
