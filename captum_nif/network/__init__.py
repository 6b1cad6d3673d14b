"""A flow graph as a network: centrality (Eq. 1), communities (Eq. 2), exports."""

from captum_nif.network.centrality import betweenness_centrality
from captum_nif.network.community import (
    SweepStep,
    communities,
    gamma_sweep,
    modularity,
)
from captum_nif.network.export import write_gexf, write_graphml, write_json
from captum_nif.network.node_flow import flow_shares, path_flow
from captum_nif.network.summary import GraphSummary, LayerSummary, summarize

__all__ = [
    "GraphSummary",
    "LayerSummary",
    "SweepStep",
    "betweenness_centrality",
    "communities",
    "flow_shares",
    "gamma_sweep",
    "modularity",
    "path_flow",
    "summarize",
    "write_gexf",
    "write_graphml",
    "write_json",
]
