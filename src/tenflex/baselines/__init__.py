"""What one would do otherwise, one paper a file, each under the same call: model and inputs in, new model out."""

from tenflex.baselines.affine import best_affine
from tenflex.baselines.chen2021 import data_aware_svd
from tenflex.baselines.luo2017 import node_dropping
from tenflex.baselines.modes import through_modes
from tenflex.baselines.zhang2015 import asymmetric_svd

__all__ = ["asymmetric_svd", "best_affine", "data_aware_svd", "node_dropping", "through_modes"]
