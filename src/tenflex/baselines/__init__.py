"""What one would do otherwise, one paper a file; all of them behind one call in `METHODS`."""

from tenflex.baselines.affine import best_affine
from tenflex.baselines.chen2021 import data_aware_svd
from tenflex.baselines.kim2016 import tucker2
from tenflex.baselines.lebedev2015 import polyadic
from tenflex.baselines.luo2017 import node_dropping
from tenflex.baselines.modes import through_modes
from tenflex.baselines.shrunk import shrunk_svd
from tenflex.baselines.torch_pruning import group_pruning
from tenflex.baselines.training import Training
from tenflex.baselines.zhang2015 import asymmetric_svd

__all__ = [
    "Training",
    "asymmetric_svd",
    "best_affine",
    "data_aware_svd",
    "group_pruning",
    "node_dropping",
    "polyadic",
    "shrunk_svd",
    "through_modes",
    "tucker2",
]
