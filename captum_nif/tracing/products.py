r"""Products of tensors, read as Einstein sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from string import ascii_letters

import torch
from torch import Tensor

from captum_nif.tracing.functions import EQUATIONS, Call
from captum_nif.tracing.label_tensors import collapse
from captum_nif.tracing.origins import Labels
from captum_nif.tracing.parts import Part, merged
from captum_nif.tracing.sources import Sources, collapsed, rearranged

PRODUCTS = frozenset(EQUATIONS) | frozenset(
    "matmul rmatmul mm bmm mv dot inner tensordot einsum addmm baddbmm".split()
)
_ADDING = frozenset(["addmm", "baddbmm", "addmv", "addr"])


@dataclass(frozen=True)
class Product:
    """A call as a product of factors, to which terms are added.

    Args:
        letters (list of list of str): the axes of each factor; those of an ellipsis are
            digits that count down.
        kept (list of str): the axes of the result.
        factors (list of Tensor): what is multiplied.
        terms (list of Tensor): what is added, as a bias.
    """

    letters: list[list[str]]
    kept: list[str]
    factors: list[Tensor]
    terms: list[Tensor]

    @property
    def extents(self) -> dict[str, int]:
        """The extent of each axis."""
        found: dict[str, int] = {}
        for letters, factor in zip(self.letters, self.factors, strict=True):
            for letter, extent in zip(letters, factor.shape, strict=True):
                found[letter] = max(extent, found.get(letter, 1))
        return found

    def labels(self, labels_of: Callable[[Tensor], Labels | None]) -> Part:
        """Labels of the result: what is summed over must lie within one sample."""
        parts = [
            _arranged(labels, letters, self.kept)
            for letters, factor in zip(self.letters, self.factors, strict=True)
            if (labels := labels_of(factor)) is not None
        ]
        parts += [
            Part(labels.rows, None, labels.sources)
            for term in self.terms
            if (labels := labels_of(term)) is not None
        ]
        return merged(parts, len(self.kept))

    def channels(
        self, weights: Collection[int], samples: Collection[int]
    ) -> Tensor | None:
        """Channel labels of the result where some factors are weights.

        Channels are what the weights tell apart in the result.

        Args:
            weights (Collection of int): ids of the factors that are weights.
            samples (Collection of int): axes of the result along which samples lie,
                which a weight that was expanded to the batch may have as well.

        Returns:
            Tensor or None: None if elements are scaled, but not mixed.
        """
        of_weight: set[str] = set()
        of_data: set[str] = set()
        for letters, factor in zip(self.letters, self.factors, strict=True):
            wide = {x for x, n in zip(letters, factor.shape, strict=True) if n > 1}
            (of_weight if id(factor) in weights else of_data).update(wide)
        summed = of_weight & of_data - set(self.kept)
        if not summed and not of_weight - of_data:
            return None
        extents = self.extents
        of_weight -= {self.kept[d] for d in samples}
        shape = [extents[x] if x in of_weight else 1 for x in self.kept]
        device = self.factors[0].device
        count = torch.arange(1, math.prod(shape) + 1, device=device)
        return count.to(torch.float32).view(shape)


def product_of(call: Call) -> Product | None:
    """A call of one of :data:`PRODUCTS`, None if its form is not understood."""
    factors = list(call.tensors)
    terms = [factors.pop(0)] if call.name in _ADDING else []
    if call.name == "rmatmul":
        factors.reverse()
    equation = _equation(call, factors)
    if equation is None:
        return None
    left, arrow, right = equation.replace(" ", "").partition("->")
    written = left.split(",")
    terms += factors[len(written) :]  # the bias of a linear map
    factors = factors[: len(written)]
    letters = [_letters(t, f.dim()) for t, f in zip(written, factors, strict=True)]
    spread = max(([x for x in t if x.isdigit()] for t in letters), key=len)
    if arrow:
        before, dots, after = right.partition("...")
        kept = [*before, *(spread if dots else ()), *after]
    else:  # the letters that appear once, in alphabetical order
        every = [x for term in letters for x in term if not x.isdigit()]
        kept = [*spread, *sorted(x for x in set(every) if every.count(x) == 1)]
    return Product(letters, kept, factors, terms)


def _equation(call: Call, factors: Sequence[Tensor]) -> str | None:
    if call.name == "einsum":
        first = call.first
        return first if isinstance(first, str) else None  # torch.einsum(x, [0], ...)
    if call.name == "scaled_dot_product_attention" and len(factors) > 3:
        return "...qd,...kd,...kv,...qk->...qv"  # with a mask
    if call.name in EQUATIONS:
        return EQUATIONS[call.name]
    a, b = factors[:2]
    if call.name == "tensordot":
        dims = call.get(2, "dims", 2)
        if isinstance(dims, int):
            dims = (range(-dims, 0), range(dims))
        if isinstance(dims, Tensor):
            return None
        return _contraction(a.dim(), b.dim(), *dims)
    if call.name == "inner":
        return _contraction(a.dim(), b.dim(), [-1], [-1])
    left = "...ij" if a.dim() > 1 else "j"
    right = "...jk" if b.dim() > 1 else "j"
    return f"{left},{right}->...{'i' * (a.dim() > 1)}{'k' * (b.dim() > 1)}"


def _contraction(a: int, b: int, dims_a: Sequence[int], dims_b: Sequence[int]) -> str:
    """The equation of a sum over pairs of axes of two tensors of these ranks."""
    left, right = list(ascii_letters[:a]), list(ascii_letters[a : a + b])
    for i, j in zip(dims_a, dims_b, strict=True):
        right[j] = left[i]
    rest = [x for x in (*left, *right) if (x in left) != (x in right)]
    return f"{''.join(left)},{''.join(right)}->{''.join(rest)}"


def _letters(term: str, rank: int) -> list[str]:
    before, dots, after = term.partition("...")
    spread = rank - len(before) - len(after) if dots else 0
    return [*before, *map(str, reversed(range(spread))), *after]


def _arranged(labels: Labels, letters: Sequence[str], kept: Sequence[str]) -> Part:
    """Labels of one factor in the axes of the result."""
    summed = [d for d, x in enumerate(letters) if x not in kept]
    order = [letters.index(x) for x in kept if x in letters]

    def arranged(part: Tensor | None) -> Tensor | None:
        core = None if part is None else collapse(part, summed)
        if core is None or len(set(letters)) < len(letters):  # a diagonal
            return None
        return placed(core)

    def placed(core: Tensor) -> Tensor:
        extents = dict(zip(letters, core.shape, strict=True))
        return core.permute(*order, *summed).reshape([extents.get(x, 1) for x in kept])

    def sources(of: Sources) -> Sources:
        return rearranged(collapsed(of, summed), placed)

    if len(set(letters)) < len(letters):
        return Part(None, None, labels.sources)
    return Part(
        arranged(labels.rows), arranged(labels.channels), sources(labels.sources)
    )
