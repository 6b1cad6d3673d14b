"""The units of recurrent layers in the states that they return besides their sequence.

A classifier may read an LSTM's last state and leave its sequence alone. The state holds
the same units at one step, so what flows through it flows through them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from captum_nif.tracing.dataflow import Trace
from captum_nif.tracing.layout import Layout
from captum_nif.tracing.record import Record


def state_layouts(module: nn.Module) -> Mapping[int, Layout]:
    """Where a recurrent module's units are in its states, by place in its results."""
    if isinstance(module, nn.LSTMCell):
        return {1: Layout(0, 1, 1, (3,), module.hidden_size, None)}
    if not isinstance(module, nn.RNNBase):
        return {}
    directions = 2 if module.bidirectional else 1
    total = directions * module.num_layers
    units = module.proj_size or module.hidden_size
    # [layers * directions, samples, units], of which the last layer's are the nodes
    last = (0, torch.arange(total - directions, total))
    kept = last if module.num_layers > 1 else None
    layout = Layout(1, 1, 1, (0, 4), directions * units, None, kept)
    has_cells = isinstance(module, nn.LSTM) and not module.proj_size
    return {1: layout, 2: layout} if has_cells else {1: layout}


def states_of(record: Record, trace: Trace) -> dict[str, dict[int, Layout]]:
    """The states of all recurrent layers, by name, and by where they are made."""
    positions = {id(node): i for i, node in enumerate(record.order)}
    sources = {source.call: source for source in record.sources}
    modules = dict(record.held.model.named_modules())
    found: dict[str, dict[int, Layout]] = {}
    for name in trace.made:
        call = trace.calls[name]
        layouts = state_layouts(modules[call.path]) if call.path in modules else {}
        roots = sources[call].roots
        states = {
            positions[id(roots[i])]: layout
            for i, layout in layouts.items()
            if i < len(roots) and trace.structure.layer(name).size == layout.count
        }
        if states:
            found[name] = states
    return found
