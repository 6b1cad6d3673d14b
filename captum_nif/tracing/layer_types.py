r"""Which modules are layers, and where samples and channels are in what they take.

Everything that tracing must know of a class of modules is one entry here. Modules of
other classes are layers only if the user names them; what they compute is then followed
inside them.

To make a class of your own a layer, like :class:`torch.nn.Linear`, register it before
tracing::

    class TernaryLinear(nn.Module): ...

    register_layer_type(TernaryLinear)

and say where it differs, if it does: ``LayerType(channel_axis=lambda m, rank: 1)`` for
a kind of convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import nn


def _last_axis(module: nn.Module, rank: int) -> int:
    return rank - 1


def _all_but_the_last(module: nn.Module, rank: int) -> Collection[int]:
    return range(rank - 1)


def _as_in_its_arguments(module: nn.Module, position: int, rank: int) -> int | None:
    return None


@dataclass(frozen=True)
class LayerType:
    """What tracing must know of a class of modules. The default is a linear map.

    Args:
        channel_axis (Callable): the axis of the channels in the first tensor that a
            module returns, from the module and the rank of that tensor. Other tensors
            that it returns, such as states, have no values of their own.
            Default: the last axis
        sample_axes (Callable): the axes of an argument along which samples may lie,
            from the module and the rank of the argument; along others it mixes what it
            takes.
            Default: all but the last
        result_axis (Callable): the axis of the samples in a tensor that it returns,
            from the module, the tensor's position among them and its rank; None for the
            axis that they have in the arguments.
            Default: None
        n_values (int, optional): how many of its tensor arguments must keep to
            ``sample_axes``; those behind are masks or states.
            Default: all
        reads_categories (bool): whether integers that it takes are numbers of
            categories, such as tokens, and so no nodes.
            Default: False
    """

    channel_axis: Callable[[nn.Module, int], int] = _last_axis
    sample_axes: Callable[[nn.Module, int], Collection[int]] = _all_but_the_last
    result_axis: Callable[[nn.Module, int, int], int | None] = _as_in_its_arguments
    n_values: int | None = None
    reads_categories: bool = False


def register_layer_type(
    module_type: type[nn.Module], layer_type: LayerType | None = None
) -> None:
    """Make the modules of a class, and of its subclasses, layers by default.

    Args:
        module_type (type): a subclass of :class:`torch.nn.Module`.
        layer_type (LayerType, optional): what sets it apart.
            Default: a layer like :class:`torch.nn.Linear`

    Raises:
        TypeError: if ``module_type`` is no subclass of Module.

    Examples::

        >>> import torch
        >>> from captum_nif.tracing import register_layer_type, trace
        >>> class Scaled(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.ones(4))
        ...     def forward(self, x):
        ...         return x * self.w
        >>> register_layer_type(Scaled)
        >>> trace(torch.nn.Sequential(Scaled()), (torch.randn(5, 4),)).structure.links
        (('input', '0'),)
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise TypeError(
            f"A layer type must be a subclass of torch.nn.Module, got {module_type!r}."
        )
    _LAYER_TYPES[module_type] = layer_type or LayerType()


def layer_type_of(module: nn.Module) -> LayerType | None:
    """The entry of a module's class, or of the nearest class that it inherits from."""
    classes = type(module).__mro__
    return next((_LAYER_TYPES[c] for c in classes if c in _LAYER_TYPES), None)


# --- the layers of torch --------------------------------------------------------------


def _channels_of_a_convolution(module: nn.Module, rank: int) -> int:
    return 1


def _samples_of_a_convolution(module: nn.Module, rank: int) -> Collection[int]:
    assert isinstance(module, nn.modules.conv._ConvNd)
    return [0] if rank == len(module.kernel_size) + 2 else []


def _all_axes(module: nn.Module, rank: int) -> Collection[int]:
    return range(rank)


def _samples_of_bags(module: nn.Module, rank: int) -> Collection[int]:
    return range(max(rank - 1, 1))


def _samples_of_a_sequence(module: nn.Module, rank: int) -> Collection[int]:
    return [] if rank == 2 else [0 if module.batch_first else 1]


def _result_of_recurrence(module: nn.Module, position: int, rank: int) -> int | None:
    if rank != 3:
        return None
    # states are [layers, samples, features] whatever `batch_first` says
    return 0 if module.batch_first and position == 0 else 1


def _result_of_attention(module: nn.Module, position: int, rank: int) -> int | None:
    if rank != 3:
        return None
    # attention weights are [samples, targets, sources] whatever `batch_first` says
    return 0 if module.batch_first or position > 0 else 1


_LAYER_TYPES: dict[type[nn.Module], LayerType] = {
    nn.Linear: LayerType(),
    nn.Bilinear: LayerType(),
    nn.modules.conv._ConvNd: LayerType(
        channel_axis=_channels_of_a_convolution, sample_axes=_samples_of_a_convolution
    ),
    nn.Embedding: LayerType(sample_axes=_all_axes, reads_categories=True),
    nn.EmbeddingBag: LayerType(sample_axes=_samples_of_bags, reads_categories=True),
    nn.RNNBase: LayerType(
        sample_axes=_samples_of_a_sequence,
        result_axis=_result_of_recurrence,
        n_values=1,
    ),
    nn.RNNCellBase: LayerType(),
    nn.MultiheadAttention: LayerType(
        sample_axes=_samples_of_a_sequence,
        result_axis=_result_of_attention,
        n_values=3,
    ),
}
