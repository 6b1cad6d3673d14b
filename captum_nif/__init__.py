"""Neural Information Flow: see how information flows through a trained network."""

from captum_nif._blocks import set_memory_limit
from captum_nif.attribution import NIFAttribution
from captum_nif.estimators import (
    EDGE,
    MINE,
    Estimator,
    GaussianCopula,
    MixedKSG,
    PMIEstimator,
    Prepared,
)
from captum_nif.flow.permutation_test import link_pvalues
from captum_nif.graph.flow_graph import FlowGraph, Layer, Link
from captum_nif.network.centrality import betweenness_centrality
from captum_nif.network.community import communities, gamma_sweep, modularity
from captum_nif.network.export import write_gexf, write_graphml, write_json
from captum_nif.network.summary import flow_shares, summarize
from captum_nif.plotting.flow_figure import plot_flow
from captum_nif.plotting.heatmaps import plot_attribution_matrix, plot_saliency
from captum_nif.plotting.page import save_html, to_html
from captum_nif.pruning import CurveRow, plot_pruning_curve, prune, pruning_curve
from captum_nif.tracing.tracer import Structure, Trace, trace

__all__ = [
    "EDGE",
    "MINE",
    "CurveRow",
    "Estimator",
    "FlowGraph",
    "GaussianCopula",
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
    "link_pvalues",
    "modularity",
    "plot_attribution_matrix",
    "plot_flow",
    "plot_pruning_curve",
    "plot_saliency",
    "prune",
    "pruning_curve",
    "save_html",
    "set_memory_limit",
    "summarize",
    "to_html",
    "trace",
    "write_gexf",
    "write_graphml",
    "write_json",
]
__version__ = "0.1.0"
