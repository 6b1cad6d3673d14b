"""Estimators of pointwise mutual information between all pairs of variables."""

from captum_nif.estimators.mixed_ksg import MixedKSG
from captum_nif.estimators.protocol import PMIEstimator, Prepared, Progress

__all__ = ["MixedKSG", "PMIEstimator", "Prepared", "Progress"]
