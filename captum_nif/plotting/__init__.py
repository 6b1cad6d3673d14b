"""Flow graphs and attributions to look at: figures, heat maps, an interactive page."""

from captum_nif.graph import FlowGraph
from captum_nif.plotting.flow_figure import plot_flow
from captum_nif.plotting.heatmaps import plot_attribution_matrix, plot_saliency
from captum_nif.plotting.page import notebook_html, save_html, to_html

__all__ = [
    "plot_attribution_matrix",
    "plot_flow",
    "plot_saliency",
    "save_html",
    "to_html",
]

# Graphs are below pictures, and do not know them.
FlowGraph.html_renderer = staticmethod(notebook_html)
