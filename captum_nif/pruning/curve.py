r"""What is left of a model's accuracy when more and more of it is pruned (Fig. 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn
from torch.func import functional_call

from captum_nif._captum import progress
from captum_nif.flow.checks import check_inputs, check_sizes
from captum_nif.flow.population import run_population
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.pruning.masking import Level, find_units
from captum_nif.pruning.units import (
    Units,
    count_of,
    lowest,
    mask_of,
    parameter,
    stored_name,
)
from captum_nif.pruning.wiring import copied, layer_calls, undisturbed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Data = tuple[Tensor, ...] | Iterable[Sequence[Tensor]]
Batch = tuple[tuple[Tensor, ...], Tensor]

SHARES = tuple(n / 20 for n in range(21))
"""Shares of the connections or nodes that are pruned, where the caller names none."""

_BATCH = 256


class CurveRow(TypedDict):
    """One point of a pruning curve.

    Keys: ``method`` (str), ``seed`` (int), ``pruned`` (int, connections or nodes),
    ``zeroed`` (int, weights and biases) and ``accuracy`` (float, in [0, 1]).
    """

    method: str
    seed: int
    pruned: int
    zeroed: int
    accuracy: float


def pruning_curve(
    model: nn.Module,
    graph: FlowGraph,
    data: Data,
    level: Level = "link",
    amounts: Sequence[float] = SHARES,
    n_random: int = 5,
    show_progress: bool = False,
) -> list[CurveRow]:
    r"""
    Accuracy against the number of zeroed weights, for NIF and what it must beat.

    Each method ranks the same connections or nodes and prunes the lowest, without
    training in between:

    - ``"NIF"``: the flow, as :func:`prune` does;
    - ``"magnitude"``: the mean :math:`|weight|` (on single weights, the L1 pruning of
      ``torch.nn.utils.prune``);
    - ``"zero activation"``, of nodes: the share of samples for which the node's value
      is not 0 (APoZ of Hu et al., 2016, on channel averages); activations that are
      never exactly 0 leave all nodes equal, and the first is pruned first;
    - ``"random"``: several orders drawn at random.

    Args:

        model (torch.nn.Module): A classifier that gives [N, C] logits. It is left as it
            is, and evaluated as a copy in eval mode.
        graph (FlowGraph): Its flow.
        data (tuple of Tensor or iterable): Held-out samples and their classes (int64,
            [N]) last: ``(x, y)``, or batches of that form, such as a DataLoader, which
            is read once and kept in memory.
        level (str, optional): ``"link"`` or ``"node"``.
            Default: ``"link"``
        amounts (sequence of float or int, optional): See :func:`prune`.
            Default: 0, 0.05, ..., 1
        n_random (int, optional): Number of random orders.
            Default: 5
        show_progress (bool, optional): Draw a progress bar.
            Default: False

    Returns:

        **list of dict**: a row for each method, order and amount with the keys
        ``method``, ``seed`` (0 but for random orders), ``pruned`` (connections or
        nodes), ``zeroed`` (weights, biases, scales and shifts, those masked before
        included) and ``accuracy``. ``pandas.DataFrame(rows)`` is a table.

    Raises:

        TypeError, ValueError: See :func:`prune`; also if the data is empty or not
            finite, or its classes do not fit the model's output.

    Examples::

        >>> import torch
        >>> from captum_nif import NIFAttribution
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        ... ).eval()
        >>> x = torch.randn(200, 4)
        >>> graph = NIFAttribution(net).fit(x).flow()
        >>> data = x, net(x).argmax(1)
        >>> rows = pruning_curve(net, graph, data, amounts=[0, 0.5, 1.0])
        >>> rows[0]
        {'method': 'NIF', 'seed': 0, 'pruned': 0, 'zeroed': 0, 'accuracy': 1.0}
        >>> len(rows)  # 3 amounts of NIF, magnitude and 5 random orders
        21
    """
    if isinstance(n_random, bool) or not isinstance(n_random, int):
        raise TypeError(f"`n_random` must be an int, got {n_random!r}")
    batches = _batches(model, data)
    units = find_units(model, graph, level, batches[0][0])
    left = units.left(model)
    counts = [count_of(amount, left, units.kind) for amount in amounts]
    probe = copied(model).eval()
    rankings = [("NIF", 0, units.flow), ("magnitude", 0, _magnitude(probe, units))]
    if level == "node":
        activity = _activity(probe, graph, units, batches)
        rankings.append(("zero activation", 0, activity))
    for seed in range(n_random):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(len(units.flow), generator=generator, device="cpu")
        rankings.append(("random", seed, scores))
    rows = []
    with progress(
        desc="pruning curve",
        total=len(rankings) * len(counts),
        disable=not show_progress,
    ) as bar:
        for method, seed, scores in rankings:
            for count in counts:
                chosen = lowest(scores, left, count)
                values, zeroed = _masked(probe, units, chosen)
                row = CurveRow(
                    method=method,
                    seed=seed,
                    pruned=count,
                    zeroed=zeroed,
                    accuracy=_accuracy(probe, values, batches),
                )
                rows.append(row)
                bar.update()
    return rows


def plot_pruning_curve(
    rows: Sequence[Mapping[str, Any]], ax: Axes | None = None
) -> Axes:
    r"""
    Draws accuracy against the number of zeroed weights.

    Each method has a line, the mean over all rows that prune as many connections or
    nodes, and a band from the lowest to the highest of them.

    Args:

        rows (sequence of dict): What :func:`pruning_curve` gave; rows of several
            networks of one shape may be joined.
        ax (matplotlib.axes.Axes, optional): Where to draw.
            Default: None (a new figure)

    Returns:

        **matplotlib.axes.Axes**: with labels and a legend.

    Raises:

        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("there is nothing to draw: `rows` is empty")
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    for method in dict.fromkeys(row["method"] for row in rows):
        points: dict[int, list[tuple[float, float]]] = {}
        for row in rows:
            if row["method"] == method:
                point = (row["zeroed"], row["accuracy"])
                points.setdefault(row["pruned"], []).append(point)
        zeroed, accuracy = zip(
            *(zip(*points[count], strict=True) for count in sorted(points)), strict=True
        )
        color, line, marker = _STYLES.get(method, ("black", "-", "x"))
        x = [sum(values) / len(values) for values in zeroed]
        y = [sum(values) / len(values) for values in accuracy]
        ax.plot(x, y, line, color=color, marker=marker, markersize=4, label=method)
        low, high = [min(v) for v in accuracy], [max(v) for v in accuracy]
        ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    ax.set(xlabel="zeroed weights and biases", ylabel="accuracy", ylim=(0, 1.03))
    ax.legend(loc="lower left")
    return ax


_STYLES = {  # Okabe and Ito's colors, told apart in print by line and marker too
    "NIF": ("#0072B2", "-", "o"),
    "magnitude": ("#D55E00", "--", "s"),
    "zero activation": ("#009E73", "-.", "^"),
    "random": ("#777777", ":", "D"),
}


def _magnitude(model: nn.Module, units: Units) -> Tensor:
    """Mean absolute weight of each unit, without biases and norms."""
    total, count = torch.zeros_like(units.flow), torch.zeros_like(units.flow)
    for part in units.entries:
        if part.units.dim() < 2:
            continue
        path, name = part.names[0]
        module = model.get_submodule(path)
        mask = mask_of(module, name)
        weight = parameter(module, name).detach() * (1 if mask is None else mask)
        size = weight.cpu().double().abs().reshape(*part.units.shape, -1).mean(-1)
        owned = part.units >= 0
        total.index_add_(0, part.units[owned], size[owned])
        count.index_add_(0, part.units[owned], torch.ones_like(size[owned]))
    return total / count.clamp(min=1)


def _activity(
    model: nn.Module, graph: FlowGraph, units: Units, batches: Sequence[Batch]
) -> Tensor:
    """Share of samples for which a node's value is not 0, summed over shared calls."""
    calls = layer_calls(model, graph).values()
    layers = list(dict.fromkeys(model.get_submodule(call.path) for call in calls))
    values = run_population(model, [(x, ()) for x, _ in batches], layers).values
    activity = torch.zeros_like(units.flow)
    for layer, start in units.layers:
        active = (values[layer.name] != 0).double().mean(0).cpu()
        activity[start : start + layer.size] += active
    return activity


def _masked(
    model: nn.Module, units: Units, pruned: Tensor
) -> tuple[dict[str, Tensor], int]:
    """The parameters with units zeroed, by name, and how many zeros they have."""
    values, zeroed = {}, 0
    for part, mask in units.masks(pruned, model):
        path, name = part.names[0]
        module = model.get_submodule(path)
        key = f"{path}.{stored_name(module, name)}".lstrip(".")
        values[key] = parameter(module, name).detach() * mask
        before = mask_of(module, name)
        zeroed += int(((mask if before is None else mask * before) == 0).sum())
    return values, zeroed


def _accuracy(
    model: nn.Module, values: dict[str, Tensor], batches: Sequence[Batch]
) -> float:
    """Share of samples whose largest logit is their class."""
    right, total = 0, 0
    with undisturbed(model):
        for inputs, classes in batches:
            logits = functional_call(model, values, inputs)
            _check_classes(logits, classes)
            right += int((logits.argmax(1) == classes).sum())
            total += len(classes)
    return right / total


def _check_classes(logits: object, classes: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits)
        raise ValueError(f"the model must give [N, C >= 2] logits, got {got}")
    n, n_classes = logits.shape
    if classes.shape != (n,) or classes.is_floating_point():
        raise ValueError(
            f"classes must be {n} ints, got {classes.dtype} of {tuple(classes.shape)}"
        )
    if bool(((classes < 0) | (classes >= n_classes)).any()):
        raise ValueError(
            f"classes must lie between 0 and {n_classes - 1}, got "
            f"{int(classes.min())} to {int(classes.max())}"
        )


def _batches(model: nn.Module, data: Data) -> list[Batch]:
    """Batches of inputs and classes, on the model's device."""
    device = next((p.device for p in model.parameters()), None)
    if isinstance(data, tuple) and all(isinstance(x, Tensor) for x in data):
        check_sizes(data, "the data")
        data = list(zip(*(x.split(_BATCH) for x in data), strict=True))
    if isinstance(data, (str, Mapping)) or not isinstance(data, Iterable):
        raise TypeError(_EXPECTED.format(type(data).__name__))
    batches = []
    for batch in data:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise TypeError(
                _EXPECTED.format(f"a batch that is a {type(batch).__name__}")
            )
        if not all(isinstance(x, Tensor) for x in batch):
            kinds = [type(x).__name__ for x in batch]
            raise TypeError(_EXPECTED.format(f"a batch of {kinds}"))
        check_sizes(batch, "the data")
        *inputs, classes = (x.to(device) for x in batch)
        check_inputs(model, inputs, "the data")
        batches.append((tuple(inputs), classes))
    if not batches:
        raise ValueError("the data is empty: accuracy is measured on samples")
    return batches


_EXPECTED = (
    "the data must be `(x, y)`, or batches of that form such as a DataLoader, with the "
    "model's inputs first and the classes last; got {}"
)
