r"""Flow through the weights of linear and convolutional maps, by pairs of nodes.

For a module with weight W that reads x and makes y, and w of the shape of y, the flow
from what belongs to node a to output b is :math:`\sum x_a W_{ba} w_b`, over all places
and samples where :math:`x_a` meets :math:`y_b`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

LINEAR_MAPS: tuple[type[nn.Module], ...] = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers with a weight, or a kernel, for every pair of what they read and make."""


def pair_products(
    module: nn.Module,
    x: Tensor,
    w: Tensor,
    owners: Tensor,
    nodes: int,
    magnitudes: bool = False,
) -> Tensor:
    """Flow from each node that owns elements of x to each output of a linear map.

    Args:
        module (Module): one of :data:`LINEAR_MAPS`.
        x (Tensor): what it reads, [N, ...].
        w (Tensor): factors of what it makes, [N, ...].
        owners (Tensor): the node that each element of x belongs to, int64, of the shape
            of x; -1 for none.
        nodes (int): how many nodes there are.
        magnitudes (bool): take magnitudes of all factors.

    Returns:
        Tensor: float64, [nodes, outputs].

    Examples::

        >>> linear = nn.Linear(2, 1, bias=False)
        >>> _ = linear.weight.data.copy_(torch.tensor([[2.0, 3.0]]))
        >>> x, w = torch.tensor([[1.0, -1.0]]), torch.tensor([[10.0]])
        >>> pair_products(linear, x, w, torch.tensor([[0, 1]]), 2)
        tensor([[ 20.],
                [-30.]], dtype=torch.float64)
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weight, x, w = (t.detach().to(dtype) for t in (weight, x, w))
    if magnitudes:
        weight, x, w = weight.abs(), x.abs(), w.abs()
    columns = _by_column(module, owners)
    if columns is None:
        return _by_element(module, weight, x, w, owners, nodes)
    # One product for each weight, which then is added up by the owner of its column.
    products = _pairs(module, weight, x, w)
    flow = products.new_zeros(nodes, products.shape[1])
    owned = columns >= 0
    return flow.index_add_(0, columns[owned], products[owned])


def _column_axis(module: nn.Module, rank: int) -> int:
    return rank - 1 if isinstance(module, nn.Linear) else 1


def _by_column(module: nn.Module, owners: Tensor) -> Tensor | None:
    """The owner of each column that a module reads, if it is the same everywhere."""
    axis = _column_axis(module, owners.dim())
    line = owners
    for d in range(owners.dim()):
        line = line.narrow(d, 0, 1) if d != axis else line
    return line.flatten() if bool((owners == line).all()) else None


def _made(module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What a module makes of x with another weight, and no bias."""
    parameters = {"weight": weight}
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        parameters["bias"] = x.new_zeros(bias.shape)
    made: Tensor = functional_call(module, parameters, (x,))
    return made


def _pairs(module: nn.Module, weight: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """By column and output, [columns, outputs], summed over places and samples."""
    leaf = weight.clone().requires_grad_(True)
    with torch.enable_grad():
        made = _made(module, leaf, x)
    # What is made is linear in the weight, so its gradient is the sum of x w.
    (meetings,) = torch.autograd.grad(made, leaf, w)
    products = (meetings * weight).double()
    if isinstance(module, nn.Linear):
        return products.mT
    assert isinstance(module, nn.modules.conv._ConvNd)
    products = products.flatten(2).sum(-1)
    if not module.transposed:
        products = products.mT.unflatten(1, (module.groups, -1)).transpose(0, 1)
    else:
        products = products.unflatten(0, (module.groups, -1))
    blocks: Tensor = torch.block_diag(*products)
    return blocks


def _by_element(
    module: nn.Module,
    weight: Tensor,
    x: Tensor,
    w: Tensor,
    owners: Tensor,
    nodes: int,
) -> Tensor:
    """As :func:`pair_products`, by one backward pass for each output."""
    leaf = x.clone().requires_grad_(True)
    with torch.enable_grad():
        made = _made(module, weight, leaf)
    axis = _column_axis(module, w.dim())
    size, owned = w.shape[axis], owners >= 0
    flow = x.new_zeros(nodes, size, dtype=torch.float64)
    for b in range(size):
        only = torch.zeros_like(w)
        only.select(axis, b).copy_(w.select(axis, b))
        (slopes,) = torch.autograd.grad(made, leaf, only, retain_graph=True)
        flow[:, b].index_add_(0, owners[owned], (slopes * x)[owned].double())
    return flow
