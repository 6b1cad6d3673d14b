"""Ranking samples: done once per variable, it is what preparation costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from captum_nif._blocks import block_length, blocks
from captum_nif.estimators.parallel import in_threads

_BYTES = 32
"""Of temporary tensors for each element that is sorted."""

_SEARCHES = 1 << 12
"""Values ranked among samples at a time."""


class Ranked(NamedTuple):
    """N samples of n variables, sorted and ranked.

    Attributes:
        ordered (Tensor): Each variable's values in ascending order, [n, N].
        ranks (Tensor): *Twice* the mean rank of every sample, [N, n]: an integer for
            ties too. int16, or int32 where N is large.
        untied (Tensor): Whether all samples of a variable differ, [n].
    """

    ordered: Tensor
    ranks: Tensor
    untied: Tensor


def ranked(x: Tensor) -> Ranked:
    """Sort and rank samples [N, n], float32 or float64.

    Examples::

        >>> ranked(torch.tensor([[3.0], [1.0], [3.0]])).ranks.flatten().tolist()
        [5, 2, 5]
    """
    samples, size = x.shape
    narrow = 2 * samples + 4 <= torch.iinfo(torch.int16).max
    rank_dtype = torch.int16 if narrow else torch.int32
    result = Ranked(
        x.new_empty(size, samples),
        x.new_empty((samples, size), dtype=rank_dtype),
        x.new_ones(size, dtype=torch.bool),
    )
    if x.device.type == "cpu":
        _rank_by_kernel(x, result)
    else:
        _rank_by_torch(x, result)
    return result


def ranked_among(ordered: Tensor, values: Tensor) -> Tensor:
    """Twice the mean rank that each value takes as one more sample, [S, n], int32.

    With l samples below the value and e equal to it, it shares positions l + 1 to
    l + e + 1, whose mean is l + e/2 + 1.

    Args:
        ordered (Tensor): N samples of n variables, each in ascending order, [n, N].
        values (Tensor): S values of each variable, [S, n], of the same dtype.

    Examples::

        >>> ranked_among(torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([[2.0], [3.0]]))
        tensor([[4],
                [6]], dtype=torch.int32)
    """
    if ordered.device.type == "cpu":
        return _ranked_by_kernel(ordered, values)
    columns = values.t().contiguous()
    below = torch.searchsorted(ordered, columns, out_int32=True)
    upto = torch.searchsorted(ordered, columns, right=True, out_int32=True)
    return (below + upto + 2).t()


def _ranked_by_kernel(ordered: Tensor, values: Tensor) -> Tensor:
    # Not by torch: its threads would stay busy waiting, where others have work to do.
    from captum_nif.estimators.kernels import ranking

    ranks = values.new_empty(values.shape, dtype=torch.int32)
    arrays = ordered.numpy(), values.contiguous().numpy(), ranks.numpy()

    def work(columns: slice) -> None:
        ranking.place(*arrays, columns.start, columns.stop)

    count, size = values.shape
    for _ in in_threads(work, blocks(size, 1 + _SEARCHES // max(1, count))):
        pass
    return ranks


def _rank_by_kernel(x: Tensor, result: Ranked) -> None:
    from captum_nif.estimators.kernels import ranking
    from captum_nif.estimators.kernels.grid import PANEL

    bits = "uint32" if x.element_size() == 4 else "uint64"
    values = x.contiguous().numpy().view(bits)
    ordered, ranks, untied = (tensor.numpy() for tensor in result)

    def work(columns: slice) -> None:
        ranking.rank(
            values, ordered.view(bits), ranks, untied, columns.start, columns.stop
        )

    for _ in in_threads(work, _blocks(x, PANEL)):
        pass


def _rank_by_torch(x: Tensor, result: Ranked) -> None:
    for columns in _blocks(x):
        ordered, order = x[:, columns].t().contiguous().sort(dim=-1)
        doubled = torch.empty_like(order).scatter_(-1, order, doubled_ranks(ordered))
        result.ordered[columns] = ordered
        result.ranks[:, columns] = doubled.t().to(result.ranks.dtype)
        result.untied[columns] = (ordered[:, 1:] > ordered[:, :-1]).all(-1)


def _blocks(x: Tensor, multiple: int = 1) -> Iterator[slice]:
    """Blocks of variables; of none where there are no samples."""
    samples, size = x.shape
    if samples == 0:
        return iter(())
    length = block_length(_BYTES * samples * multiple) * multiple
    return blocks(size, length)


def doubled_ranks(ordered: Tensor) -> Tensor:
    """Twice the mean rank of every value in rows of ascending values, [..., N]."""
    samples = ordered.shape[-1]
    rank = torch.arange(1, samples + 1, device=ordered.device).expand(ordered.shape)
    rises = ordered[..., 1:] != ordered[..., :-1]
    edge = torch.ones_like(rank[..., :1], dtype=torch.bool)
    first = torch.where(torch.cat([edge, rises], -1), rank, 0)
    last = torch.where(torch.cat([rises, edge], -1), rank, samples)
    return first.cummax(-1).values + last.flip(-1).cummin(-1).values.flip(-1)
