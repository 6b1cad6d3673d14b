"""The flow graph as plain data: layers, links, and sums over paths (Eq. 4)."""

from captum_nif.graph.elements import Layer, Link
from captum_nif.graph.flow_graph import FlowGraph

__all__ = ["FlowGraph", "Layer", "Link"]
