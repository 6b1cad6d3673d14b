"""What is kept of a background to compare samples with: means, and some of its rows.

The background runs through the model once, batch by batch. Of the values of layers only
sums are kept, taken as they are made, so the memory needed is the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_nif.flow.batches import Batches, rows_of
from captum_nif.flow.checks import check_inputs, check_same
from captum_nif.flow.disturbances import warn_if_disturbed
from captum_nif.flow.population import Modules, check_alike
from captum_nif.graph.elements import Layer
from captum_nif.tracing.dataflow import Structure
from captum_nif.tracing.layout import Arrangement, Layout
from captum_nif.tracing.replay import Look, Script, Watched
from captum_nif.tracing.tracer import as_visit, rehearse, trace, watch

MAX_ROWS = 1024
"""Rows of the background that are kept to make hybrids of, at most, and as many as fit
into :data:`MAX_BYTES`."""

MAX_BYTES = 2**28

_REHEARSED = 3
"""Samples that show what layers there are: of one, the axis could not be told."""


@dataclass(frozen=True)
class Backdrop:
    """What is kept of a background of N samples.

    Args:
        structure (Structure): layers, of channels, and links.
        made (dict of int): see :class:`~captum_nif.tracing.dataflow.Trace`.
        results (dict of int): see :class:`~captum_nif.tracing.dataflow.Trace`.
        states (dict): see :class:`~captum_nif.tracing.replay.Rehearsal`.
        script (Script or None): see :func:`captum_nif.tracing.tracer.watch`.
        size (int): number of samples N.
        rows (tuple of Tensor): by input, some samples, [rows, ...].
        extra (tuple): the further arguments of the model for these samples.
        kept (Tensor): their numbers among all samples, ascending, int64, [rows].
        means (tuple of Tensor): by input the mean of all samples, float64, [1, ...].
        value_means (dict of Tensor): by hidden layer the mean of its value, float64,
            [channels, places].
        state_means (dict of Tensor): the same of states, by where they are made.
    """

    structure: Structure
    made: Mapping[str, int]
    results: Mapping[str, int]
    states: Mapping[str, Mapping[int, Layout]]
    script: Script | None
    size: int
    rows: tuple[Tensor, ...]
    extra: tuple[Any, ...]
    kept: Tensor
    means: tuple[Tensor, ...]
    value_means: Mapping[str, Tensor]
    state_means: Mapping[int, Tensor]

    @property
    def inputs(self) -> list[Layer]:
        """The model's inputs."""
        return [layer for layer in self.structure.layers if layer.kind == "input"]

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Of the model's inputs."""
        return tuple(x.dtype for x in self.rows)


def summarize_background(
    model: nn.Module,
    batches: Batches,
    layers: Modules = None,
    what: str = "the background",
    seed: int = 0,
) -> Backdrop:
    """Streams a background through a model: one pass, of which means are kept.

    Args:
        model (Module): the network.
        batches (iterable): pairs of the inputs and the further arguments of one call.
        layers (sequence, optional): see :func:`captum_nif.tracing.find_layers`.
        what (str): what the samples are called in messages.
        seed (int): of the choice of rows that are kept.

    Raises:
        TypeError, ValueError, NotImplementedError: see
            :func:`captum_nif.flow.population.run_population`.
    """
    chosen = _Reservoir(seed)
    sums = _Sums(what)
    first: tuple[Tensor, ...] = ()
    for inputs, extra in batches:
        check_inputs(model, inputs, what)
        if not first:
            first = inputs
            found, states, script = rehearse(model, *_a_few(inputs, extra), layers)
        check_alike(first, inputs, what)
        values = _Values()
        looks = looks_at(found.structure, found.made, states, values.of)
        if chosen.seen:
            arguments = model, inputs, extra, layers, looks, script
            _, structure = watch(*arguments, gradients=False)
        else:  # traced whole: does a sample's value depend on those beside it?
            visits = {at: as_visit(len(inputs[0]), look) for at, look in looks.items()}
            whole = trace(model, inputs, extra, layers, visits=visits)
            warn_if_disturbed(model, whole, found if len(inputs[0]) > 1 else None)
            structure = whole.structure
        if structure is not None:
            check_same(found.structure, structure, what)
        for name, total in values.sums.items():
            sums.add(name, total)
        for layer, x in zip(found.structure.layers, inputs, strict=False):
            sums.add(layer.name, x.double().sum(0, keepdim=True))
        chosen.add(inputs, extra)
    if not first:
        raise ValueError(
            f"{what.capitalize()} is empty: a sample is compared with its samples."
        )
    means = {name: total / chosen.seen for name, total in sums.totals.items()}
    return Backdrop(
        found.structure,
        found.made,
        found.results,
        states,
        script,
        chosen.seen,
        chosen.rows,
        chosen.extra,
        chosen.numbers,
        tuple(means.pop(x.name) for x in found.structure.layers[: len(first)]),
        {name: means[name] for name in found.made},
        {at: means[at] for own in states.values() for at in own},
    )


def looks_at(
    structure: Structure,
    made: Mapping[str, int],
    states: Mapping[str, Mapping[int, Layout]],
    look: Callable[[str | int], Look],
) -> dict[int, Watched]:
    """Looks at the values of all layers, and at states.

    Args:
        structure (Structure): the layers.
        made (Mapping): see :class:`~captum_nif.tracing.dataflow.Trace`.
        states (Mapping): see :class:`~captum_nif.tracing.replay.Rehearsal`.
        look (Callable): what looks, by the name of a layer or where a state is made.
    """
    looks = {}
    for name, position in made.items():
        looks[position] = Watched(structure.layer(name).size, look(name))
        for at, layout in states.get(name, {}).items():
            looks[at] = Watched(layout.count, look(at), layout)
    return looks


def _a_few(
    inputs: tuple[Tensor, ...], extra: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """A few samples, at least two: the only one of a batch twice."""
    count = len(inputs[0])
    rows = torch.arange(min(max(count, 2), _REHEARSED)) % count
    few = tuple(x[rows.to(x.device)] for x in inputs)
    return few, rows_of(extra, rows, count)


class _Values:
    """Sums over the samples of one batch of the values of layers, as they are made."""

    def __init__(self) -> None:
        self.sums: dict[str | int, Tensor] = {}

    def of(self, name: str | int) -> Look:
        """What looks at the value of a layer."""

        def look(x: Tensor, arrangement: Arrangement | None) -> None:
            assert arrangement is not None  # values have channels
            self.sums[name] = arrangement.group(x).sum(0, dtype=torch.float64)

        return look


class _Sums:
    """Sums over the samples of all batches, checked to be finite."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.totals: dict[str | int, Tensor] = {}

    def add(self, name: str | int, total: Tensor) -> None:
        if not bool(total.isfinite().all()):
            who = f"The layer {name!r}" if isinstance(name, str) else "A state"
            raise ValueError(
                f"{who} gives NaN or infinity for {self._what}: check the "
                "model's weights and the scale of its inputs."
            )
        earlier = self.totals.get(name)
        self.totals[name] = total if earlier is None else earlier + total


class _Reservoir:
    """A random choice of the rows of a stream, each equally likely."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed % 2**63)
        self._keys = torch.empty(0, dtype=torch.float64)
        self.numbers = torch.empty(0, dtype=torch.int64)
        self.rows: tuple[Tensor, ...] = ()
        self.extra: tuple[Any, ...] = ()
        self.seen = 0

    def add(self, inputs: tuple[Tensor, ...], extra: tuple[Any, ...]) -> None:
        """Look at more rows, and at the arguments that follow them."""
        count = len(inputs[0])
        row_bytes = sum(x[0].numel() * x.element_size() for x in inputs)
        most = max(min(MAX_ROWS, MAX_BYTES // row_bytes), 1)
        drawn = torch.rand(count, generator=self._generator, dtype=torch.float64)
        keys = torch.cat([self._keys, drawn])
        numbers = torch.cat([self.numbers, torch.arange(self.seen, self.seen + count)])
        chosen = keys.topk(min(len(keys), most)).indices.sort().values
        before = len(self._keys)

        def joined(earlier: Any, later: Any) -> Any:
            if not isinstance(later, Tensor) or not later.dim() or len(later) != count:
                return later
            if before:
                later = torch.cat([earlier, later])
            return later.detach()[chosen.to(later.device)]

        none = [None] * len(extra)
        self.rows = tuple(map(joined, self.rows or inputs, inputs))
        self.extra = tuple(map(joined, self.extra or none, extra))
        self._keys, self.numbers = keys[chosen], numbers[chosen]
        self.seen += count
