r"""Functions that do with a parameter, outside any layer, what layers do.

``F.linear(x, self.qkv.weight)``, ``x @ self.w``, ``self.table[ids]``: such a call is a
layer, named after the module that owns the parameter. Its channels are what the
parameter tells apart in the result.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from torch import Tensor

from captum_nif.tracing.functions import MIXING_FUNCTIONS, Call
from captum_nif.tracing.layers import numbered
from captum_nif.tracing.origins import Labels, sample_axes, untraceable
from captum_nif.tracing.products import PRODUCTS, product_of
from captum_nif.tracing.sources import uniform

_LOOK_UPS = frozenset(["embedding", "getitem", "index_select"])


class FunctionLayer(NamedTuple):
    """What a call with a parameter computes, taken for a layer.

    Args:
        rows (Tensor or None): row labels of the result, None where samples are mixed.
        channels (Tensor or None): its channel labels, None if it is not understood.
        untraceable (str): what mixed the samples, or what is not understood.
        reads_categories (bool): whether integers that it takes are categories.
    """

    rows: Tensor | None
    channels: Tensor | None
    untraceable: str = ""
    reads_categories: bool = False

    def output_labels(self, outputs: Sequence[Tensor], index: int) -> list[Labels]:
        """Labels of the results, as the source of that index."""
        sources = uniform([index])
        if self.rows is None or self.channels is None:
            return [untraceable(t.shape, self.untraceable, sources) for t in outputs]
        return [Labels(t.shape, self.rows, self.channels, sources) for t in outputs]


def function_layer(
    call: Call, weights: Collection[int], labels: Sequence[Labels], parameter: str
) -> FunctionLayer | None:
    """A call as a layer, or None if it is none.

    Args:
        call (Call): a call that takes traced tensors and what parameters made.
        weights (Collection of int): the ids of those of its arguments that parameters,
            but no traced tensors made.
        labels (Sequence of Labels): of its results, as if the weights were constants.
        parameter (str): the parameter's name.
    """
    out, rows = call.outputs[0], labels[0].rows
    why = labels[0].untraceable
    if call.name in _LOOK_UPS:
        return _looked_up(call, weights)
    if call.name not in MIXING_FUNCTIONS:
        return None
    if call.name in PRODUCTS and (product := product_of(call)) is not None:
        channels = product.channels(weights, sample_axes(labels[0]))
        return None if channels is None else FunctionLayer(rows, channels, why)
    if call.name.startswith("conv") and id(call.get(1, "weight")) in weights:
        return FunctionLayer(rows, numbered(out, [1]), why)
    why = f"`{call.name}` with the parameter {parameter!r} is not understood"
    return FunctionLayer(None, None, why)


def _looked_up(call: Call, weights: Collection[int]) -> FunctionLayer | None:
    """Rows of a table, picked by traced numbers."""
    table, index = call.get(0, "input self"), call.get(1, "weight index")
    if call.name == "embedding":
        table, index = index, table
    elif call.name == "index_select":
        index = call.get(2, "index")
    if id(table) not in weights or not isinstance(index, Tensor):
        return None
    labels, out = call.labels_of(index), call.outputs[0]
    if labels is None:
        return None
    axes = range(labels.rows.dim() if labels.rows is not None else 0, out.dim())
    if labels.rows is None or not axes:
        return FunctionLayer(None, None, labels.untraceable or "it is a number", True)
    rows = labels.rows.reshape(*labels.rows.shape, *(1 for _ in axes))
    return FunctionLayer(rows, numbered(out, list(axes)), reads_categories=True)
