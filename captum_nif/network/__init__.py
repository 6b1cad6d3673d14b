"""A flow graph as a network: centrality (Eq. 1), communities (Eq. 2), exports."""

from captum_nif.network.centrality import betweenness_centrality
from captum_nif.network.community import communities, gamma_sweep, modularity
from captum_nif.network.export import write_gexf, write_graphml, write_json
from captum_nif.network.summary import flow_shares, summarize

__all__ = [
    "betweenness_centrality",
    "communities",
    "flow_shares",
    "gamma_sweep",
    "modularity",
    "summarize",
    "write_gexf",
    "write_graphml",
    "write_json",
]
