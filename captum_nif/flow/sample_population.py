r"""Flow over a sample's own population: slopes averaged node by node.

The population of a sample's graph are its hybrids with the background
(:mod:`captum_nif.flow.hybrids`). The slope of node b on a node a that it reads is the
mean, over the hybrids, of the local derivative. With independent Gaussian inputs that
is the regression coefficient of b on a (Stein's lemma), and in units of standard
deviations their correlation: the link of :mod:`captum_nif.flow.path_analysis`, without
the noise of draws, and for one sample.

No link is ever formed. One forward and one backward pass over the m hybrids give, for
every node b, the slope of the target summed over all paths from b (Eq. 4), if the
gradient is replaced by its mean over the hybrids wherever it passes what a layer
computed, and the value that is read of it:

.. math:: w_b = \frac1m \sum_t \frac{\partial}{\partial v_b} \dots

The attribution of input element i is :math:`(x_i - \bar x_i) \, w_i`, with the
background's mean; in a linear network that is weight times deviation, exactly. The flow
through a unit b is :math:`\phi_b = (v_b(x) - \bar v_b) \, w_b`, summed over the places
of a channel. With averages at no layer this would be expected gradients (Erion et al.,
2021) over coalitions; with averages at all layers it is their mean field on the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_nif._blocks import blocks
from captum_nif.flow.backdrop import Backdrop, looks_at
from captum_nif.flow.batches import cut
from captum_nif.flow.checks import NO_GRADIENT, check_differentiable, check_same
from captum_nif.flow.hybrids import Hybrids
from captum_nif.flow.population import Modules
from captum_nif.tracing.layout import Arrangement
from captum_nif.tracing.replay import Watched
from captum_nif.tracing.tracer import watch


@dataclass
class Slopes:
    """What one backward pass over the hybrids of S samples gives.

    Args:
        inputs (tuple of Tensor): slope on each input element, float32 or better,
            [groups, S, ...]; zeros for an input that is no variable.
        layers (dict of Tensor): slope on each node and place of hidden layers, by name,
            and of states, by where they are made, [groups, S, channels, places].
    """

    inputs: tuple[Tensor, ...]
    layers: dict[str | int, Tensor] = field(default_factory=dict)


@dataclass
class _Averages:
    """What gradients go through on their way back: averages over hybrids.

    The graph of a pass holds on to this, so this must not hold on to the graph.

    Args:
        count (int): hybrids of each sample, m.
        blocks (int): m, and 1 more where the samples themselves run as well.
        groups (int): into how many groups hybrids are split, averaged by themselves.
        slopes (dict of Tensor or None): where slopes on the values of layers go.
    """

    count: int
    blocks: int
    groups: int = 1
    slopes: dict[str | int, Tensor] | None = None

    def of(
        self, name: str | int | None, arrangement: Arrangement, gradient: Tensor
    ) -> Tensor:
        """A gradient, with the mean over its hybrids in the place of each.

        Args:
            name (str, int or None): the layer, or the state, whose slopes this gives.
            arrangement (Arrangement): where samples are in it.
            gradient (Tensor): of a value, or of what a layer computed.
        """
        cut_up = arrangement.blocks(gradient, self.blocks)
        means = self.means(cut_up)
        if self.slopes is not None and name is not None:
            by_group = [arrangement.group_block(mean) for mean in means]
            self.slopes[name] = torch.stack(by_group)
        averaged = means.to(gradient.dtype).unsqueeze(1)
        averaged = averaged.expand(-1, self.count // self.groups, *means.shape[1:])
        averaged, rest = averaged.flatten(0, 1), cut_up[self.count :]
        averaged = torch.cat([averaged, rest]) if len(rest) else averaged
        return arrangement.joined(averaged, gradient)

    def means(self, by_block: Tensor) -> Tensor:
        """Of each group of hybrids, [groups, ...], of a tensor [blocks, ...]."""
        parts = by_block[: self.count].unflatten(0, (self.groups, -1))
        means: Tensor = parts.mean(1, dtype=_precise(parts.dtype))
        return means


class HybridPass:
    """One forward pass over the hybrids of some samples, and backward passes from it.

    Args:
        model (Module): the network.
        layers (sequence, optional): see :func:`captum_nif.tracing.find_layers`.
        backdrop (Backdrop): the background.
        hybrids (Hybrids): how hybrids are made.
        samples (tuple of Tensor): by input, [S, ...].
        extra (tuple): further arguments of the model; tensors follow the samples.
        end (str, optional): the layer whose nodes are targets. Default: the output
        with_samples (bool): run the samples themselves besides, after the hybrids, and
            keep their values.

    Raises:
        RuntimeError: if the model has no gradients.
        ValueError: if it takes another path than for the background.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Modules,
        backdrop: Backdrop,
        hybrids: Hybrids,
        samples: tuple[Tensor, ...],
        extra: tuple[Any, ...] = (),
        end: str | None = None,
        with_samples: bool = False,
    ) -> None:
        check_differentiable(model)
        self._s = len(samples[0])
        m = hybrids.count
        self._averages = _Averages(m, m + with_samples)
        self._end = end or backdrop.structure.output.name
        self._targets: Tensor | None = None
        self._keeps_values = with_samples
        self.values: dict[str | int, Tensor] = {}
        """Of the samples themselves, as slopes on them, [S, channels, places]."""
        with torch.inference_mode(False), torch.enable_grad():
            mixed = hybrids.of([x.detach() for x in samples], backdrop.rows)
            if with_samples:
                pairs = zip(mixed, samples, strict=True)
                mixed = tuple(torch.cat([u, x.detach()]) for u, x in pairs)
            self._leaves = tuple(u.requires_grad_(u.is_floating_point()) for u in mixed)
            output, structure = watch(
                model,
                self._leaves,
                repeated(extra, self._s, m + with_samples),
                layers,
                self._looks(backdrop),
                backdrop.script,
            )
            self.output = output.reshape(len(mixed[0]), -1)
        if structure is not None:
            check_same(backdrop.structure, structure, "the samples")
        if self._end == backdrop.structure.output.name:
            self._targets = self.output

    def _looks(self, backdrop: Backdrop) -> dict[int, Watched]:
        """What is done at the results and values of layers, which may be the same."""
        structure = backdrop.structure
        results = {
            position: Watched(structure.layer(name).size, self._meet_result)
            for name, position in backdrop.results.items()
        }
        values = looks_at(
            structure,
            backdrop.made,
            backdrop.states,
            lambda name: partial(self._meet_value, name),
        )
        return results | values

    def _meet_result(self, x: Tensor, arrangement: Arrangement | None) -> None:
        if arrangement is not None:
            self._average(None, x, arrangement)

    def _meet_value(
        self, name: str | int, x: Tensor, arrangement: Arrangement | None
    ) -> None:
        assert arrangement is not None  # values have channels
        # At once, and copied: a model may overwrite the tensor.
        if self._keeps_values:
            own = arrangement.blocks(x.detach(), self._averages.blocks)[-1]
            self.values[name] = arrangement.group_block(own).clone()
        if name == self._end:
            self._targets = arrangement.group(x).mean(-1)
        self._average(name, x, arrangement)

    def _average(
        self, name: str | int | None, x: Tensor, arrangement: Arrangement
    ) -> None:
        if x.requires_grad:
            x.register_hook(partial(self._averages.of, name, arrangement))

    @property
    def _of_hybrids(self) -> Tensor:
        """1 for rows of hybrids, 0 for those of the samples themselves."""
        ones = torch.ones(len(self.output), device=self.output.device)
        ones[self._averages.count * self._s :] = 0
        return ones

    def objective(self, nodes: Tensor) -> Tensor:
        """The value of one node of the end layer, of each hybrid of each sample.

        Args:
            nodes (Tensor): the node of each sample, int64, [S].
        """
        assert self._targets is not None
        with torch.inference_mode(False), torch.enable_grad():
            index = nodes.to(self._targets.device).repeat(self._averages.blocks)
            return self._targets.gather(1, index[:, None])[:, 0]

    def slopes(
        self,
        objective: Tensor,
        groups: int = 1,
        keep: bool = False,
        units: bool = False,
    ) -> Slopes:
        """Slopes of an objective, averaged over hybrids at every layer.

        Args:
            objective (Tensor): a number for each hybrid, [m * S].
            groups (int): into how many groups the hybrids are split, each averaged by
                itself.
            keep (bool): keep what further passes need.
            units (bool): give the slopes on hidden nodes, too.
        """
        if not objective.requires_grad:
            raise RuntimeError(NO_GRADIENT)
        averages = self._averages
        averages.groups, averages.slopes = groups, {} if units else None
        with torch.inference_mode(False):
            found = torch.autograd.grad(
                objective,
                [x for x in self._leaves if x.requires_grad],
                self._of_hybrids.to(objective.dtype),
                retain_graph=keep,
                allow_unused=True,
            )
        gradients = iter(found)
        inputs = []
        for x in self._leaves:
            gradient = next(gradients) if x.requires_grad else None
            if gradient is None:
                none = torch.zeros_like(x[: self._s], dtype=_precise(x.dtype))
                inputs.append(none.expand(groups, *none.shape))
            else:
                inputs.append(averages.means(gradient.unflatten(0, (-1, self._s))))
        layers, averages.slopes = averages.slopes or {}, None
        return Slopes(tuple(inputs), layers)


def passes(
    samples: tuple[Tensor, ...],
    extra: tuple[Any, ...],
    hybrids: Hybrids,
    most: int,
) -> Iterator[tuple[slice, tuple[Tensor, ...], tuple[Any, ...]]]:
    """Cuts samples so that about ``most`` hybrids run through the model at a time.

    The hybrids of a sample are averaged at every layer, so they run together, also
    where they are more than that.
    """
    step = max(1, most // hybrids.count)
    parts = blocks(len(samples[0]), step)
    for part, (inputs, further) in zip(parts, cut(samples, extra, step), strict=True):
        yield part, inputs, further


def _precise(dtype: torch.dtype) -> torch.dtype:
    """Single precision at least."""
    return torch.promote_types(dtype, torch.float32)


def repeated(extra: tuple[Any, ...], samples: int, times: int) -> tuple[Any, ...]:
    """Further arguments for several blocks of the same samples."""
    return tuple(
        arg.repeat(times, *[1] * (arg.dim() - 1))
        if isinstance(arg, Tensor) and arg.dim() and len(arg) == samples
        else arg
        for arg in extra
    )
