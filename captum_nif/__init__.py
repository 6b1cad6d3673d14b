"""Neural Information Flow: see how information flows through a trained network."""

from captum_nif.attribution import NIFAttribution
from captum_nif.estimators import MixedKSG, PMIEstimator, Prepared
from captum_nif.graph import FlowGraph, Layer, Link
from captum_nif.tracing import Structure, Trace, trace

__all__ = [
    "FlowGraph",
    "Layer",
    "Link",
    "MixedKSG",
    "NIFAttribution",
    "PMIEstimator",
    "Prepared",
    "Structure",
    "Trace",
    "trace",
]
__version__ = "0.1.0"
