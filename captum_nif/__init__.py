"""Neural Information Flow: see how information flows through a trained network."""

from captum_nif.attribution import NIFAttribution
from captum_nif.centrality import betweenness_centrality
from captum_nif.community import communities, gamma_sweep, modularity
from captum_nif.estimators import MixedKSG, PMIEstimator, Prepared
from captum_nif.export import write_gexf, write_graphml, write_json
from captum_nif.graph import FlowGraph, Layer, Link
from captum_nif.summary import flow_shares, summarize
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
    "betweenness_centrality",
    "communities",
    "flow_shares",
    "gamma_sweep",
    "modularity",
    "summarize",
    "trace",
    "write_gexf",
    "write_graphml",
    "write_json",
]
__version__ = "0.1.0"
