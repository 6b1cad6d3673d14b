"""Estimators of pointwise mutual information between all pairs of variables.

Public are the classes below. :class:`MixedKSG` is computed by several engines that give
the same bits; ``engine_plain`` is the readable one.
"""

from captum_nif.estimators.base import Estimator
from captum_nif.estimators.edge import EDGE
from captum_nif.estimators.gaussian import GaussianCopula
from captum_nif.estimators.mine import MINE
from captum_nif.estimators.mixed_ksg import MixedKSG
from captum_nif.estimators.protocol import PMIEstimator, Prepared, Progress

__all__ = [
    "EDGE",
    "MINE",
    "Estimator",
    "GaussianCopula",
    "MixedKSG",
    "PMIEstimator",
    "Prepared",
    "Progress",
]
