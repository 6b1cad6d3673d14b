"""A module, run: which layers it has, what feeds what, and the value of every node."""

from captum_nif.tracing.tracer import Structure, Trace, find_layers, trace

__all__ = ["Structure", "Trace", "find_layers", "trace"]
