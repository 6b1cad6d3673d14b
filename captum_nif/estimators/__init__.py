"""Estimators of pointwise mutual information between all pairs of variables."""

from captum_nif.estimators.base import PMIEstimator, Prepared, Progress
from captum_nif.estimators.edge import EDGE
from captum_nif.estimators.gaussian import GaussianCopula
from captum_nif.estimators.mine import MINE
from captum_nif.estimators.mixed_ksg import MixedKSG

__all__ = [
    "EDGE",
    "MINE",
    "GaussianCopula",
    "MixedKSG",
    "PMIEstimator",
    "Prepared",
    "Progress",
]
