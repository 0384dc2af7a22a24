"""What one would do otherwise, one paper a file, each under the same call: model and inputs in, new model out."""

from tenflex.baselines.affine import best_affine
from tenflex.baselines.chen2021 import data_aware_svd
from tenflex.baselines.kim2016 import tucker2
from tenflex.baselines.lebedev2015 import polyadic
from tenflex.baselines.zhang2015 import asymmetric_svd

__all__ = ["asymmetric_svd", "best_affine", "data_aware_svd", "polyadic", "tucker2"]
