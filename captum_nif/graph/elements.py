"""The two kinds of part a flow graph is made of: layers of nodes, and links."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["input", "hidden", "output"]

WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Layer:
    r"""The nodes of one layer: input features, neurons, channels or classes.

    Args:
        name (str): Name of the layer, unique in its graph.
        size (int): Number of nodes, at least 1.
        kind (str): ``"input"``, ``"hidden"`` or ``"output"``.
        shape (tuple of int, optional): Arrangement of the nodes in row-major order,
            such as ``(3, 32, 32)`` for the elements of an image.
            Default: ``(size,)``
        labels (tuple of str, optional): A name for each node, such as the names of
            the features or of the classes.
            Default: ``None``

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the name is empty, the kind unknown, the size below 1, or the
            shape or the labels do not agree with the size.

    Examples::

        >>> Layer("input", 4, "input").shape
        (4,)
        >>> Layer("image", 4, "input", shape=(1, 2, 2)).node_labels()[-1]
        'image[0, 1, 1]'
    """

    name: str
    size: int
    kind: Kind
    shape: tuple[int, ...] = ()
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(
                f"a layer's name must be a str, got {type(self.name).__name__}"
            )
        if not self.name:
            raise ValueError("a layer's name must not be empty")
        if not _is_integer(self.size):
            raise TypeError(
                f"layer {self.name!r}: size must be an int, "
                f"got {type(self.size).__name__}"
            )
        if self.size < 1:
            raise ValueError(
                f"layer {self.name!r}: size must be at least 1, got {self.size}"
            )
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"layer {self.name!r}: kind must be one of {get_args(Kind)}, "
                f"got {self.kind!r}"
            )
        # Frozen, so the normal forms are set past the dataclass's guard.
        object.__setattr__(self, "name", str(self.name))
        object.__setattr__(self, "shape", self._checked_shape())
        object.__setattr__(self, "labels", self._checked_labels())

    def _checked_shape(self) -> tuple[int, ...]:
        shape = tuple(self.shape) or (self.size,)
        if not all(map(_is_integer, shape)):
            raise TypeError(
                f"layer {self.name!r}: shape must hold ints, got {self.shape!r}"
            )
        if min(shape) < 1 or math.prod(shape) != self.size:
            raise ValueError(
                f"layer {self.name!r}: shape {shape} does not arrange {self.size} nodes"
            )
        return shape

    def _checked_labels(self) -> tuple[str, ...] | None:
        if self.labels is None:
            return None
        if isinstance(self.labels, str):
            raise TypeError(
                f"layer {self.name!r}: labels must be a sequence of str, one per "
                f"node, got the single str {self.labels!r}"
            )
        labels = tuple(self.labels)
        if not all(isinstance(label, str) for label in labels):
            raise TypeError(f"layer {self.name!r}: every label must be a str")
        if len(labels) != self.size:
            raise ValueError(
                f"layer {self.name!r}: {len(labels)} labels for {self.size} nodes; "
                "give one per node"
            )
        # Subclasses, such as numpy's, are no strings to other programs.
        return tuple(map(str, labels))

    def node_labels(self) -> tuple[str, ...]:
        r"""Names every node, by its label or else by its place in the layer.

        Returns:
            tuple of str: ``labels``, or ``"name[index]"`` with one index per
            dimension of ``shape``.
        """
        if self.labels is not None:
            return self.labels
        places = torch.unravel_index(torch.arange(self.size), self.shape)
        indices = zip(*(place.tolist() for place in places), strict=True)
        return tuple(f"{self.name}[{', '.join(map(str, place))}]" for place in indices)


@dataclass(frozen=True, eq=False)
class Link:
    r"""The flow from every node of one layer to every node of a later one.

    Args:
        source (str): Name of the layer the flow comes from.
        target (str): Name of the layer the flow goes to.
        weight (Tensor): Flow of each pair of nodes (in nats where it is an
            information), shape [size of source, size of target], of a floating
            dtype; dense, or sparse in COO layout. A sparse weight is coalesced. An
            entry of exactly 0 is no connection.
        pvalue (Tensor, optional): Probability that two independent nodes would show
            such a flow, for each pair of nodes, whether it is a connection or not: a
            dense tensor of the weight's shape, on its device. See
            :func:`~captum_nif.link_pvalues`.
            Default: ``None`` (unknown)

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If the weight is not a matrix, has another layout, or holds NaN
            or infinity; if p-values are not between 0 and 1, or do not fit it.

    Examples::

        >>> link = Link("input", "fc", torch.tensor([[0.5, 0.0], [0.0, 0.2]]))
        >>> rows, columns, values = link.entries()
        >>> rows.tolist(), columns.tolist(), values.tolist()
        ([0, 1], [0, 1], [0.5, 0.20000000298023224])
    """

    source: str
    target: str
    weight: Tensor
    pvalue: Tensor | None = None

    def __post_init__(self) -> None:
        for end in (self.source, self.target):
            if not isinstance(end, str):
                raise TypeError(
                    "a link's source and target must be names of layers (str), "
                    f"got {type(end).__name__}"
                )
        if not isinstance(self.weight, Tensor):
            raise TypeError(
                f"{self}: weight must be a Tensor, got {type(self.weight).__name__}"
            )
        if self.weight.dtype not in WEIGHT_DTYPES:
            raise TypeError(
                f"{self}: weight must be float16, bfloat16, float32 or float64, "
                f"got {self.weight.dtype}"
            )
        if self.weight.ndim != 2:
            raise ValueError(
                f"{self}: weight must be a matrix [size of source, size of target], "
                f"got shape {tuple(self.weight.shape)}"
            )
        if self.weight.layout == torch.sparse_coo and self.weight.sparse_dim() == 2:
            # The guard of the frozen dataclass is passed to store the normal form.
            object.__setattr__(self, "weight", self.weight.coalesce())
        elif self.weight.layout != torch.strided:
            raise ValueError(
                f"{self}: weight must be dense or sparse COO with two sparse "
                f"dimensions, got {self.weight.layout}; convert it with to_dense() "
                "or to_sparse_coo()"
            )
        if not stored_values(self.weight).isfinite().all():
            raise ValueError(
                f"{self}: weight holds NaN or infinity; every flow must be finite"
            )
        if self.pvalue is not None:
            self._check_pvalue(self.pvalue)

    def _check_pvalue(self, pvalue: Tensor) -> None:
        if not isinstance(pvalue, Tensor):
            raise TypeError(
                f"{self}: pvalue must be a Tensor or None, got {type(pvalue).__name__}"
            )
        if pvalue.layout != torch.strided or pvalue.dtype not in WEIGHT_DTYPES:
            raise TypeError(
                f"{self}: pvalue must be dense and float16, bfloat16, float32 or "
                f"float64, got {pvalue.dtype} ({pvalue.layout})"
            )
        if (pvalue.shape, pvalue.device) != (self.weight.shape, self.weight.device):
            raise ValueError(
                f"{self}: pvalue has shape {tuple(pvalue.shape)} on {pvalue.device}, "
                f"and its weight {tuple(self.weight.shape)} on {self.weight.device}"
            )
        if not ((pvalue >= 0) & (pvalue <= 1)).all():
            raise ValueError(f"{self}: every pvalue must be a number from 0 to 1")

    @property
    def ends(self) -> tuple[str, str]:
        """Names of the source and the target; no two links of a graph share them."""
        return self.source, self.target

    def __str__(self) -> str:
        return f"link {self.source!r} -> {self.target!r}"

    def __eq__(self, other: object) -> bool:
        """Compares names, layout, dtype, device, every weight and every p-value."""
        if not isinstance(other, Link):
            return NotImplemented
        mine, theirs = self.weight, other.weight
        return (
            self.ends == other.ends
            and (mine.layout, mine.dtype) == (theirs.layout, theirs.dtype)
            and (mine.shape, mine.device) == (theirs.shape, theirs.device)
            and (not mine.is_sparse or torch.equal(mine.indices(), theirs.indices()))
            and torch.equal(stored_values(mine), stored_values(theirs))
            and _equal(self.pvalue, other.pvalue)
        )

    __hash__ = None  # type: ignore[assignment]  # equal by value, like a list

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Lists the connections: the entries of ``weight`` that are not 0.

        Returns:
            tuple of Tensor: Source indices (int64), target indices (int64) and
            weights, each of shape [number of connections], in row-major order.
        """
        if self.weight.is_sparse:
            (rows, columns), values = self.weight.indices(), self.weight.values()
            kept = values != 0
            return rows[kept], columns[kept], values[kept]
        rows, columns = self.weight.nonzero(as_tuple=True)
        return rows, columns, self.weight[rows, columns]


def stored_values(weight: Tensor) -> Tensor:
    """Returns the numbers that a dense or a coalesced sparse weight holds."""
    return weight.values() if weight.is_sparse else weight


def sorted_sparse(indices: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Builds a coalesced sparse tensor from indices known to be sorted and unique."""
    return torch.sparse_coo_tensor(
        indices, values, tuple(shape), is_coalesced=True, check_invariants=False
    )


def _equal(mine: Tensor | None, theirs: Tensor | None) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
