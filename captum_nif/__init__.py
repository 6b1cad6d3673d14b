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
from captum_nif.flow import link_pvalues
from captum_nif.graph import FlowGraph, Layer, Link
from captum_nif.network import (
    GraphSummary,
    LayerSummary,
    SweepStep,
    betweenness_centrality,
    communities,
    flow_shares,
    gamma_sweep,
    modularity,
    path_flow,
    summarize,
    write_gexf,
    write_graphml,
    write_json,
)
from captum_nif.plotting import (
    plot_attribution_matrix,
    plot_flow,
    plot_saliency,
    save_html,
    to_html,
)
from captum_nif.pruning import CurveRow, plot_pruning_curve, prune, pruning_curve
from captum_nif.tracing import (
    Constant,
    LayerType,
    Structure,
    Trace,
    register_layer_type,
    trace,
)

__all__ = [
    "EDGE",
    "MINE",
    "Constant",
    "CurveRow",
    "Estimator",
    "FlowGraph",
    "GaussianCopula",
    "GraphSummary",
    "Layer",
    "LayerSummary",
    "LayerType",
    "Link",
    "MixedKSG",
    "NIFAttribution",
    "PMIEstimator",
    "Prepared",
    "Structure",
    "SweepStep",
    "Trace",
    "betweenness_centrality",
    "communities",
    "flow_shares",
    "gamma_sweep",
    "link_pvalues",
    "modularity",
    "path_flow",
    "plot_attribution_matrix",
    "plot_flow",
    "plot_pruning_curve",
    "plot_saliency",
    "prune",
    "pruning_curve",
    "register_layer_type",
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
