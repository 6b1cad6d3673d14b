"""The flow graph: how much information runs between which nodes of a network."""

from __future__ import annotations

import numbers
import operator
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, SupportsIndex

import torch
from torch import Tensor

from captum_nif._messages import renamed_argument
from captum_nif.graph.elements import Layer, Link, sorted_sparse
from captum_nif.graph.false_discovery import check_fdr, false_discovery
from captum_nif.graph.path_sums import (
    Normalization,
    at_least_single,
    backward_sums,
    divide_columns,
    incoming_totals,
)
from captum_nif.graph.serialization import read_graph, write_graph

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["FlowGraph", "Layer", "Link"]


class FlowGraph:
    r"""A layered graph whose links carry flow: plain data, apart from any model.

    Layers stand in topological order, and links run from earlier layers to later
    ones, so the graph is acyclic. It may have any number of inputs, and links may
    skip layers. Graphs are equal if their layers and links are, in their order.

    Args:
        layers (sequence of Layer): The layers, in topological order.
        links (sequence of Link): The links between them, at most one for each pair
            of layers.
        unit (str, optional): Unit of the weights, as pictures and tables name it.
            Default: ``"nats"``

    Raises:
        TypeError: If something is not a ``Layer`` or a ``Link``.
        ValueError: If there is no layer, two layers share a name, or a link is a
            duplicate, names an unknown layer, runs backwards or into an input, does
            not fit the sizes of its layers, or lies on another device than the rest.

    Examples::

        >>> graph = FlowGraph(
        ...     [
        ...         Layer("input", 2, "input", labels=("age", "fare")),
        ...         Layer("fc1", 2, "hidden"),
        ...         Layer("fc2", 1, "output"),
        ...     ],
        ...     [
        ...         Link("input", "fc1", torch.tensor([[0.5, 0.0], [0.1, 0.2]])),
        ...         Link("fc1", "fc2", torch.tensor([[0.4], [0.3]])),
        ...     ],
        ... )
        >>> graph
        FlowGraph(3 layers, 5 nodes, 2 links)
          input  input   2 nodes
          fc1    hidden  2 nodes  from input
          fc2    output  1 node   from fc1
        >>> graph.path_sums(target=0)
        tensor([0.2000, 0.1000])
    """

    layers: list[Layer]
    links: list[Link]

    unit: str

    def __init__(
        self, layers: Sequence[Layer], links: Sequence[Link], unit: str = "nats"
    ) -> None:
        if not isinstance(unit, str):
            raise TypeError(f"unit must be a str, got {type(unit).__name__}")
        self.layers = list(layers)
        self.links = list(links)
        self.unit = unit
        for given, wanted in ((self.layers, Layer), (self.links, Link)):
            for each in given:
                if not isinstance(each, wanted):
                    raise TypeError(
                        f"expected a {wanted.__name__}, got {type(each).__name__}"
                    )
        if not self.layers:
            raise ValueError("a flow graph needs at least one layer, got none")
        self._position = {layer.name: n for n, layer in enumerate(self.layers)}
        if len(self._position) < len(self.layers):
            names = [layer.name for layer in self.layers]
            raise ValueError(f"the names of layers must be unique, got {names}")
        self._check_links()

    def _check_links(self) -> None:
        pairs = set()
        for link in self.links:
            source, target = self.layer(link.source), self.layer(link.target)
            if self._position[source.name] >= self._position[target.name]:
                raise ValueError(
                    f"{link} does not run from an earlier layer to a later one; "
                    "give the layers in topological order"
                )
            if target.kind == "input":
                raise ValueError(f"{link} runs into an input; nothing flows into one")
            if tuple(link.weight.shape) != (source.size, target.size):
                raise ValueError(
                    f"{link}: weight has shape {tuple(link.weight.shape)}, and its "
                    f"layers have sizes {(source.size, target.size)}"
                )
            if link.ends in pairs:
                raise ValueError(f"{link} is given twice; add the weights up")
            pairs.add(link.ends)
        devices = sorted({str(link.weight.device) for link in self.links})
        if len(devices) > 1:
            raise ValueError(f"all weights must be on one device, got {devices}")

    @property
    def inputs(self) -> list[Layer]:
        """The input layers, in their order."""
        return [layer for layer in self.layers if layer.kind == "input"]

    def layer(self, name: str) -> Layer:
        """Returns the layer called ``name``; ``ValueError`` if there is none."""
        if name not in self._position:
            raise ValueError(f"no layer {name!r}; there are {list(self._position)}")
        return self.layers[self._position[name]]

    def __eq__(self, other: object) -> bool:
        """Compares layers, links with their weights, in their order, and units."""
        if not isinstance(other, FlowGraph):
            return NotImplemented
        mine, theirs = (
            (graph.layers, graph.links, graph.unit) for graph in (self, other)
        )
        return mine == theirs

    __hash__ = None  # type: ignore[assignment]  # equal by value, like a list

    def __repr__(self) -> str:
        rows = []
        for layer in self.layers:
            count = " x ".join(map(str, layer.shape))
            nodes = f"{count} node{'s' if layer.size > 1 else ''}"
            sources = [link.source for link in self.links if link.target == layer.name]
            origin = f"from {', '.join(sources)}" if sources else ""
            rows.append((layer.name, layer.kind, nodes, origin))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        counts = (
            (len(self.layers), "layer"),
            (sum(layer.size for layer in self.layers), "node"),
            (len(self.links), "link"),
        )
        summary = ", ".join(f"{n} {what}{'s' * (n != 1)}" for n, what in counts)
        return "\n  ".join([f"FlowGraph({summary})", *table])

    html_renderer: ClassVar[Callable[[FlowGraph], str | None] | None] = None
    """What notebooks show a graph with; set by :mod:`captum_nif.plotting`."""

    def _repr_html_(self) -> str | None:
        """The page of :func:`~captum_nif.save_html` in a frame, for notebooks."""
        renderer = type(self).html_renderer
        return None if renderer is None else renderer(self)

    def named(self, **labels: Sequence[str]) -> FlowGraph:
        r"""Gives nodes names of their own, as pictures and exports show them.

        Args:
            **labels (sequence of str): By the name of a layer, one name per node. The
                words ``input`` and ``output`` also stand for the layer of that kind,
                where there is one.

        Returns:
            FlowGraph: The same layers and links, with the labels.

        Raises:
            ValueError: If there is no such layer, or not one label per node.

        Examples::

            >>> layers = [Layer("x", 2, "input"), Layer("fc", 1, "output")]
            >>> graph = FlowGraph(layers, [Link("x", "fc", torch.ones(2, 1))])
            >>> graph.named(input=["age", "fare"], fc=["survived"]).layers[0].labels
            ('age', 'fare')
        """
        given = {self._by_kind(name): tuple(names) for name, names in labels.items()}
        layers = [
            replace(layer, labels=given.get(layer.name, layer.labels))
            for layer in self.layers
        ]
        return FlowGraph(layers, self.links, self.unit)

    def _by_kind(self, name: str) -> str:
        """The name of a layer, or of the only one of the kind that is named."""
        of_kind = [layer.name for layer in self.layers if layer.kind == name]
        if name not in self._position and len(of_kind) == 1:
            return of_kind[0]
        return self.layer(name).name

    def path_sums(self, target: int | None = None, layer: str | None = None) -> Tensor:
        r"""Sums the products of weights over all paths from each input node (Eq. 4).

        .. math::
            A_{ij} = \sum_{\text{paths } x_i \to y_j} \;
                \prod_{\text{links on the path}} w

        (Davis et al., 2020, Eq. 4), by backward accumulation, in time linear in the
        number of weights. Only paths that end at ``layer`` count. On a graph with
        skip links, routes of different length compare only after
        :meth:`normalized`.

        Args:
            target (int, optional): Node of ``layer`` where the paths end; a negative
                one counts from its last node. ``None`` stands for all of them.
                Default: ``None``
            layer (str, optional): Name of the layer where the paths end.
                Default: ``None`` (the output layer)

        Returns:
            Tensor: Sums of shape [n_features] for one target, [n_features, size of
            ``layer``] for all, in at least single precision; the nodes of several
            inputs follow each other in the order of the layers.

        Raises:
            TypeError: If ``target`` is no integer.
            IndexError: If ``layer`` has no node ``target``.
            ValueError: If ``layer`` is unknown, or if it is not given and there is
                not exactly one output, or if the graph has no input.
        """
        end = self._output() if layer is None else self.layer(layer)
        if not self.inputs:
            raise ValueError(
                "path sums start at inputs, and the graph has no layer of that kind; "
                f"there are {list(self._position)}"
            )
        dtype = at_least_single(*(link.weight.dtype for link in self.links))
        device = self.links[0].weight.device if self.links else None
        if target is None:
            seed = torch.eye(end.size, dtype=dtype, device=device)
        else:
            seed = torch.zeros(end.size, dtype=dtype, device=device)
            seed[_node_index(target, end)] = 1.0
        sums = backward_sums(
            self.layers, self.links, end.name, seed, operator.attrgetter("weight")
        )
        features = torch.cat([sums[each.name] for each in self.inputs], dim=-1)
        return features.mT if target is None else features

    def normalized(self, by: Normalization = "layer") -> FlowGraph:
        r"""Divides each link by the flow that enters its target.

        Args:
            by (str, optional): ``"layer"``: the :math:`|w|` of all links into a layer
                sum to 1, so layers of any width compare, as in the paper's Fig. 2;
                ``"node"``: those into each node do, so path sums over routes of
                different length compare.
                Default: ``"layer"``

        Returns:
            FlowGraph: The same graph with divided weights, in at least single
            precision. A layer or node that no flow enters stays so.

        Raises:
            ValueError: If ``by`` is neither ``"layer"`` nor ``"node"``.
        """
        divided = {}
        for links in self._incoming().values():
            totals = incoming_totals([link.weight for link in links], by)
            for link in links:
                divided[link.ends] = divide_columns(link.weight, totals)
        return self._with_weights(divided, f"share of the flow into a {by}")

    def top(self, fraction: float) -> FlowGraph:
        r"""Keeps the strongest connections that carry a share of the flow.

        Into every layer enter connections from nodes of all its sources. Of these the
        fewest are kept, strongest first, whose :math:`|w|` sum to at least
        ``fraction`` times the sum of all, so every layer, wide or narrow, shows the
        same share of its flow. Between equals the one that comes first is kept (in
        the order of links, then of source and target nodes).

        Args:
            fraction (float): Share of each layer's incoming flow, from 0 (nothing is
                kept) to 1 (everything that is not 0).

        Returns:
            FlowGraph: The same layers and links, with sparse weights that hold only
            the kept connections, unchanged.

        Raises:
            TypeError: If ``fraction`` is no number.
            ValueError: If it lies outside [0, 1].
        """
        if not isinstance(fraction, numbers.Real):
            raise TypeError(f"fraction must be a number, got {type(fraction).__name__}")
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
        kept = {}
        for links in self._incoming().values():
            for link, weight in zip(links, _strongest(links, fraction), strict=True):
                kept[link.ends] = weight
        return self._with_weights(kept)

    @property
    def has_pvalues(self) -> bool:
        """Whether there are links, and all of them have p-values."""
        return bool(self.links) and all(x.pvalue is not None for x in self.links)

    def adjusted_pvalues(self) -> dict[tuple[str, str], Tensor]:
        r"""Adjusts the p-values of all pairs of nodes in the graph for their number.

        By Benjamini and Hochberg (1995). Pairs that are no
        connection, as where :meth:`top` dropped it, count with the rest: choosing
        links by their strength does not make the rest more significant.

        Returns:
            dict of tuple to Tensor: By the ends of a link the adjusted p-values,
            float64, of the shape of its weight.

        Raises:
            ValueError: If a link has no p-values.
        """
        pvalues = [link.pvalue for link in self.links if link.pvalue is not None]
        if not self.has_pvalues:
            raise ValueError(
                f"{len(self.links) - len(pvalues)} of {len(self.links)} links have no "
                "p-values; make a population graph with them"
            )
        ends = (link.ends for link in self.links)
        return dict(zip(ends, false_discovery(pvalues), strict=True))

    @renamed_argument("level", "fdr")
    def significant(self, fdr: float = 0.05) -> FlowGraph:
        r"""Keeps the links that tell two nodes apart from independent ones.

        Of the links kept, at most a share ``fdr`` is to be expected to run between
        independent nodes (the false discovery rate). With many samples weak flow is
        significant as well, so this does not say which links matter: see :meth:`top`.

        Args:
            fdr (float, optional): The false discovery rate, between 0 and 1.
                Default: ``0.05``

        Returns:
            FlowGraph: The same layers and links, p-values included; weights whose
            adjusted p-value exceeds ``fdr`` are 0 (in a sparse weight, are gone).

        Raises:
            TypeError: If ``fdr`` is no number.
            ValueError: If it is not between 0 and 1, or a link has no p-values.

        Examples::

            >>> layers = [Layer("x", 2, "input"), Layer("y", 1, "output")]
            >>> pvalue = torch.tensor([[0.001], [0.4]])
            >>> link = Link("x", "y", torch.tensor([[0.5], [0.1]]), pvalue)
            >>> FlowGraph(layers, [link]).significant().links[0].weight
            tensor([[0.5000],
                    [0.0000]])
        """
        check_fdr(fdr)
        adjusted = self.adjusted_pvalues()
        return self._with_weights(
            {link.ends: _where(adjusted[link.ends] <= fdr, link) for link in self.links}
        )

    def to_networkx(self) -> nx.DiGraph[tuple[str, int]]:
        r"""Converts the graph to networkx.

        Returns:
            networkx.DiGraph: Nodes are pairs (name of the layer, index) with the
            attributes ``layer``, ``index``, ``kind`` and ``label``. Edges carry
            ``weight`` (float), and ``pvalue`` where links have them; an entry of
            exactly 0 is no edge, whether the weight is dense or sparse, so what
            :meth:`top` drops is gone.

        Examples::

            >>> layers = [Layer("x", 2, "input"), Layer("y", 1, "output")]
            >>> link = Link("x", "y", torch.tensor([[0.5], [0.0]]))
            >>> FlowGraph(layers, [link]).to_networkx().edges(data="weight")
            OutEdgeDataView([(('x', 0), ('y', 0), 0.5)])
        """
        import networkx as nx

        graph: nx.DiGraph[tuple[str, int]] = nx.DiGraph()
        for layer in self.layers:
            for index, label in enumerate(layer.node_labels()):
                graph.add_node(
                    (layer.name, index),
                    layer=layer.name,
                    index=index,
                    kind=layer.kind,
                    label=label,
                )
        for link in self.links:
            rows, columns, values = link.entries()
            numbers_of = {"weight": values.tolist()}
            if link.pvalue is not None:
                numbers_of["pvalue"] = link.pvalue[rows, columns].tolist()
            graph.add_edges_from(
                (
                    (link.source, row),
                    (link.target, column),
                    dict(zip(numbers_of, each, strict=True)),
                )
                for row, column, *each in zip(
                    rows.tolist(), columns.tolist(), *numbers_of.values(), strict=True
                )
            )
        return graph

    def save(self, path: str | os.PathLike[str]) -> None:
        r"""Writes the graph to a file (safetensors, no pickle).

        Args:
            path (str or os.PathLike): The file, written whole or not at all, under
                exactly this name whatever its extension. An existing one is replaced.

        Raises:
            OSError: If the file cannot be written; nothing is left behind then.

        Examples::

            >>> import tempfile
            >>> layers = [Layer("x", 2, "input"), Layer("y", 1, "output")]
            >>> graph = FlowGraph(layers, [Link("x", "y", torch.rand(2, 1))])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     graph.save(f"{folder}/flow")
            ...     FlowGraph.load(f"{folder}/flow") == graph
            True
        """
        write_graph(path, self.layers, self.links, self.unit)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FlowGraph:
        r"""Reads a graph that :meth:`save` wrote; safe on files from strangers.

        Args:
            path (str or os.PathLike): The file.

        Returns:
            FlowGraph: The graph, equal bit for bit to the one saved, on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is cut, damaged, or something else.
        """
        layers, links, unit = read_graph(path)
        try:
            return cls(layers, links, unit)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} holds a damaged FlowGraph: {error}") from error

    def _output(self) -> Layer:
        outputs = [layer for layer in self.layers if layer.kind == "output"]
        if len(outputs) != 1:
            raise ValueError(
                f"the graph has {len(outputs)} outputs "
                f"{[layer.name for layer in outputs]}; name the layer where the "
                f"paths end: one of {list(self._position)}"
            )
        return outputs[0]

    def _with_weights(
        self, weights: Mapping[tuple[str, str], Tensor], unit: str | None = None
    ) -> FlowGraph:
        links = [replace(link, weight=weights[link.ends]) for link in self.links]
        return FlowGraph(self.layers, links, self.unit if unit is None else unit)

    def _incoming(self) -> dict[str, list[Link]]:
        incoming = defaultdict(list)
        for link in self.links:
            incoming[link.target].append(link)
        return incoming


def _node_index(target: object, layer: Layer) -> int:
    if isinstance(target, bool) or not isinstance(target, SupportsIndex):
        raise TypeError(f"target must be an int or None, got {type(target).__name__}")
    index = operator.index(target)
    if not -layer.size <= index < layer.size:
        raise IndexError(
            f"target {index} is out of range for layer {layer.name!r} with "
            f"{layer.size} nodes"
        )
    return index


def _where(kept: Tensor, link: Link) -> Tensor:
    """The weight of a link, without the entries that are not kept."""
    if not link.weight.is_sparse:
        return torch.where(kept, link.weight, 0.0)
    rows, columns, values = link.entries()
    mask = kept[rows, columns]
    indices = torch.stack((rows, columns))[:, mask]
    return sorted_sparse(indices, values[mask], link.weight.shape)


def _strongest(links: Sequence[Link], fraction: float) -> list[Tensor]:
    entries = [link.entries() for link in links]
    magnitudes = torch.cat([values.double().abs() for _, _, values in entries])
    descending = magnitudes.argsort(descending=True, stable=True)
    carried = magnitudes[descending].cumsum(0)
    if fraction == 1:
        # Exactly all: the last ones may be too small to change the running sum.
        count = len(carried)
    else:
        count = int((carried < fraction * carried[-1:]).sum()) + (fraction > 0)
    kept = torch.zeros_like(descending, dtype=torch.bool)
    kept[descending[:count]] = True
    sizes = [len(values) for _, _, values in entries]
    return [
        sorted_sparse(
            torch.stack((rows, columns))[:, mask], values[mask], link.weight.shape
        )
        for link, (rows, columns, values), mask in zip(
            links, entries, torch.split(kept, sizes), strict=True
        )
    ]
