r"""How a model is called: constant arguments, and what is explained of its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Constant:
    r"""
    A further argument of a model that is the same for all samples.

    Tensors in ``additional_forward_args`` follow the samples along axis 0, and are cut
    with them into batches; what is wrapped is passed on whole. The model gets what is
    inside.

    Args:

        value (any): the argument, such as the edges of a graph on which all samples are
            signals.

    Examples::

        >>> import torch
        >>> from captum_nif import Constant, NIFAttribution
        >>> class GraphNet(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inner = torch.nn.Linear(2, 4)
        ...         self.outer = torch.nn.Linear(4, 3)
        ...     def forward(self, x, edges):
        ...         h = self.inner(x).relu()
        ...         h = torch.zeros_like(h).index_add(1, edges[1], h[:, edges[0]])
        ...         return self.outer(h.mean(1))
        >>> edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> x = torch.randn(100, 3, 2)
        >>> nif = NIFAttribution(GraphNet().eval())
        >>> further = {"additional_forward_args": Constant(edges)}
        >>> nif.fit(x, **further).attribute(x[:2], target=0, **further).shape
        torch.Size([2, 3, 2])
    """

    value: Any


def unwrapped(extra: tuple[Any, ...]) -> tuple[Any, ...]:
    """Further arguments as the model takes them."""
    return tuple(x.value if isinstance(x, Constant) else x for x in extra)


def explained_tensor(output: object) -> Tensor:
    """The tensor that is explained of what a model returned.

    The tensor itself; or what is called ``logits`` in a dict, a dataclass or a named
    tuple; or the one tensor that any of these, or a tuple or list, holds.

    Raises:
        TypeError: if it cannot be told which.
    """
    if isinstance(output, Tensor):
        return output
    fields = _fields(output)
    if isinstance(logits := fields.get("logits"), Tensor):
        return logits
    tensors = {name: x for name, x in fields.items() if isinstance(x, Tensor)}
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    held = f" with the tensors {', '.join(tensors)}" if tensors else ""
    raise TypeError(
        f"The model must return one tensor, or name one of several `logits`; got "
        f"{type(output).__name__}{held}: wrap it in a Module that returns the tensor "
        "to be explained."
    )


def _fields(output: object) -> dict[str, object]:
    """The parts of what holds several things, by name or number."""
    if isinstance(output, Mapping):
        return {str(name): x for name, x in output.items()}
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        names = [field.name for field in dataclasses.fields(output)]
        return {name: getattr(output, name) for name in names}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if isinstance(output, (tuple, list)):
        return {str(i): x for i, x in enumerate(output)}
    return {}
