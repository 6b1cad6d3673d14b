"""A module, run: which layers it has, what feeds what, and the value of every node."""

from captum_nif.tracing.calling import Constant
from captum_nif.tracing.layer_types import LayerType, register_layer_type
from captum_nif.tracing.tracer import Structure, Trace, find_layers, trace

__all__ = [
    "Constant",
    "LayerType",
    "Structure",
    "Trace",
    "find_layers",
    "register_layer_type",
    "trace",
]
