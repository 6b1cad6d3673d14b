r"""Which of the features that a layer reads hold which nodes of the layers before it.

A layer reads *columns*: the input features of a linear layer, the input channels of a
convolution. What stands in a column depends on all that happens in between: maps may be
flattened, added, concatenated or permuted. A flow graph does not record that, so the
model is asked again, with a dye: NaN survives activations, pools, sums and moves, and
stays with its sample. One layer after the other has its nodes dyed, node i in the
samples that stand for the binary digits of i, and every other layer filters the dye
out, so that the columns where it arrives are those that read node i directly.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.hooks import RemovableHandle

from captum_nif.flow.checks import check_inputs
from captum_nif.graph.elements import Layer
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.tracing.label_tensors import on_axis
from captum_nif.tracing.layer_types import layer_type_of

WEIGHTED: tuple[type[nn.Module], ...] = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers that have a weight, or a kernel, for every pair of a column and a node."""

_OVER_CHANNELS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
_OVER_LAST_AXIS = (nn.LayerNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))
NORMS: tuple[type[nn.Module], ...] = (*_OVER_CHANNELS, *_OVER_LAST_AXIS)
"""Modules that scale and shift every channel by parameters of its own."""

Example = Tensor | tuple[Any, ...]
"""What a model is called with: one tensor, or all its arguments."""


class Call(NamedTuple):
    """One call of a module: its path in the model, and how often it ran before."""

    path: str
    before: int


Reads = Mapping[str, Tensor | None]
"""For each source layer by name what a call reads of it: int64 [2, pairs] of nodes and
the columns that hold them. None if nodes are mixed on the way; no pairs if they are
mixed by weights, in a module that is no layer of the graph."""


def layer_calls(model: nn.Module, graph: FlowGraph) -> dict[str, Call]:
    """Finds the module calls that the layers of a graph stand for.

    Args:
        model (Module): the network.
        graph (FlowGraph): its flow.

    Returns:
        dict of str to Call: by the layer's name, without inputs, and without an output
        that no module makes.

    Raises:
        ValueError: if a layer has no such module: the graph is another model's.
    """
    paths, parameters = dict(model.named_modules()), dict(model.named_parameters())
    names = {layer.name for layer in graph.layers}
    calls = {}
    for layer in graph.layers:
        path, _, count = layer.name.rpartition(":")
        if not path or not count.isdecimal():
            path, count = layer.name, "0"
        if layer.kind == "input":
            continue
        if layer.name == "output" and ("output" not in paths or "output:0" in names):
            continue
        if path == "model" and path not in paths:
            path = ""  # the model itself is the layer
        if path in parameters:
            around = path.rpartition(".")[0]
            raise ValueError(
                f"the layer {layer.name!r} is a function that was called with a "
                "parameter, and only layers that are modules are pruned: make a graph "
                f'in which the module around it is one, by `layers="+{around}"`'
            )
        if path not in paths:
            raise ValueError(
                f"the graph has a layer {layer.name!r}, and the model no module of "
                "that name: the graph was made of another model"
            )
        calls[layer.name] = Call(path, int(count))
    return calls


def wiring(
    model: nn.Module, graph: FlowGraph, example_inputs: Example | None = None
) -> Mapping[Call, Reads]:
    """Runs a copy of the model and tells which columns hold which nodes.

    Args:
        model (Module): the network.
        graph (FlowGraph): its flow.
        example_inputs (Tensor or tuple, optional): what to call it with. Default:
            random numbers of the shapes of the graph's inputs.

    Returns:
        dict of Call to Reads: for every call of a :data:`WEIGHTED` module or a norm.

    Raises:
        ValueError: if the model does not run on such inputs, or they do not fit the
            graph.
    """
    probe = _Probe(model, graph, example_inputs)
    found: dict[Call, dict[str, Tensor | None]] = defaultdict(dict)
    for source in graph.layers:
        if source.kind != "output":
            for call, pairs in probe.run(source).items():
                found[call][source.name] = pairs
    return found


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of a model, which may be pruned already.

    ``torch.nn.utils.prune`` leaves the masked weight as a result of autograd, which
    ``copy.deepcopy`` refuses; the copy gets its numbers, and computes it anew when run.
    """
    memo = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, memo)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Without gradients, and with torch's random state put back after."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    indices = [d.index for d in devices if d.index is not None]
    with torch.random.fork_rng(indices), torch.no_grad():
        yield


def column_axis(module: nn.Module, rank: int) -> int:
    """The axis of the columns in a tensor of that rank, which the module reads."""
    return rank - 1 if isinstance(module, (nn.Linear, *_OVER_LAST_AXIS)) else 1


class _Probe:
    """A copy of a model, run once for each layer whose nodes are dyed."""

    _NO_PAIRS = torch.empty(2, 0, dtype=torch.int64)

    def __init__(
        self, model: nn.Module, graph: FlowGraph, example_inputs: Example | None
    ) -> None:
        self._layers = {call: name for name, call in layer_calls(model, graph).items()}
        self._model = copied(model).eval()
        self._paths = {module: path for path, module in self._model.named_modules()}
        self._inputs = [layer.name for layer in graph.inputs]
        self._example = _example(self._model, graph.inputs, example_inputs)

    def run(self, source: Layer) -> dict[Call, Tensor | None]:
        """What is read of the nodes of ``source``, by the calls that read any."""
        self._source, self._code = source, _code(source.size)
        self._counts = Counter[nn.Module]()
        self._reads: dict[Call, Tensor | None] = {}
        self._is_weighted = False  # whether the dye met weights outside the graph
        samples = len(self._code)
        arguments = [
            x[:1].repeat_interleave(samples, 0) if follows else x
            for x, follows in self._example
        ]
        if source.name in self._inputs:
            place = self._inputs.index(source.name)
            if not arguments[place].is_floating_point():
                return {}  # token ids are categories: nothing is linked to them
            flat = self._dyed(arguments[place].reshape(samples, -1), 1)
            arguments[place] = flat.view_as(arguments[place])
        with undisturbed(self._model), self._watched():
            try:
                self._model(*arguments)
            except Exception as error:
                shapes = [tuple(x.shape[1:]) for x, follows in self._example if follows]
                raise ValueError(
                    f"the model does not run on samples of the shapes {shapes}: the "
                    "graph was made of another model or of groups of features, or the "
                    "model takes token ids or further arguments; pass what it is "
                    "called with as `example_inputs`"
                ) from error
        if self._is_weighted:
            mixed = [call for call, pairs in self._reads.items() if pairs is None]
            self._reads.update(dict.fromkeys(mixed, self._NO_PAIRS))
        return self._reads

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        layers = [self._model.get_submodule(call.path) for call in self._layers]
        inside = {inner for layer in layers for inner in layer.modules()}
        handles: list[RemovableHandle] = []
        for module in self._paths:
            before = module.register_forward_pre_hook
            if isinstance(module, WEIGHTED + NORMS):
                handles.append(before(self._before, with_kwargs=True))
            if module in layers or isinstance(module, NORMS):
                handles.append(module.register_forward_hook(self._after))
            elif layer_type_of(module) is not None and module not in inside:
                handles.append(before(self._outside, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _call(self, module: nn.Module) -> Call:
        return Call(self._paths[module], self._counts[module])

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = next(iter((*args, *kwargs.values())))
        axis = column_axis(module, x.dim())
        dyed = x.isnan()
        if dyed.any() and axis < x.dim() and len(x) == len(self._code):
            self._reads[self._call(module)] = _decoded(dyed, axis)

    def _outside(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        self._is_weighted |= any(bool(x.isnan().any()) for x in tensors)

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        name = self._layers.get(self._call(module))
        self._counts[module] += 1
        if name is None and isinstance(module, NORMS):
            return args[0].clone() if args else output  # mixes nodes, but moves none
        leaves, structure = tree_flatten(output)
        leaves = [_clean(x) if isinstance(x, Tensor) else x for x in leaves]
        if name == self._source.name and len(leaves[0]) == len(self._code):
            axis = _channel_axis(module, leaves[0], self._source.size)
            if axis is not None:
                leaves[0] = self._dyed(leaves[0], axis)
        return tree_unflatten(leaves, structure)

    def _dyed(self, x: Tensor, axis: int) -> Tensor:
        shape = [1] * x.dim()
        shape[0], shape[axis] = self._code.shape
        return x.masked_fill(self._code.to(x.device).view(shape), torch.nan)


def _example(
    model: nn.Module, inputs: Sequence[Layer], given: Example | None
) -> list[tuple[Any, bool]]:
    """The arguments of a call, each with whether its axis 0 counts samples."""
    if given is None:
        like = next(p for p in model.parameters() if p.is_floating_point())
        generator = torch.Generator().manual_seed(0)
        given = tuple(
            torch.rand(1, *x.shape, generator=generator, device="cpu").to(like)
            for x in inputs
        )
    arguments = (given,) if isinstance(given, Tensor) else given
    if not isinstance(arguments, tuple):
        raise TypeError(
            "`example_inputs` must be a tensor, or a tuple of all that the model is "
            f"called with, got {type(given).__name__}"
        )
    samples = [x for x in arguments[: len(inputs)] if isinstance(x, Tensor) and x.dim()]
    sizes = [x[0].numel() for x in samples]
    if sizes != [layer.size for layer in inputs]:
        raise ValueError(
            f"`example_inputs` begins with samples of {sizes} elements, and the graph "
            f"has inputs of {[layer.size for layer in inputs]} nodes: give what the "
            "model is called with, and a graph without groups of features"
        )
    # What is NaN would count as dyed.
    check_inputs(model, samples, "`example_inputs`")
    count = len(samples[0])
    return [
        (x, isinstance(x, Tensor) and x.dim() > 0 and len(x) == count)
        for x in arguments
    ]


def _code(size: int) -> Tensor:
    """Which samples dye which nodes, bool [samples, size].

    Every binary digit of a node's number stands beside its complement: where nodes are
    mixed, both are dyed.
    """
    numbers = torch.arange(size)
    digits = [numbers >> n & 1 for n in range(max(1, (size - 1).bit_length()))]
    return torch.stack([digit == bit for digit in digits for bit in (1, 0)])


def _clean(x: Tensor) -> Tensor:
    # to 1 and not to 0, which what follows may divide by
    return x.nan_to_num(nan=1.0, posinf=1.0, neginf=1.0)


def _decoded(dyed: Tensor, axis: int) -> Tensor | None:
    """Pairs of nodes and columns, None where an element is a mixture of nodes."""
    digits, complements = dyed[0::2], dyed[1::2]
    single = (digits ^ complements).all(0)
    if not torch.equal(single, dyed.any(0)):
        return None
    width = dyed.shape[axis]
    pairs = on_axis(torch.arange(width, device=dyed.device), axis - 1, dyed.dim() - 1)
    for n, digit in enumerate(digits):
        pairs = pairs + (digit.long() << n) * width
    known = pairs[single].unique().cpu()
    return torch.stack((known // width, known % width))


def _channel_axis(module: nn.Module, x: Tensor, size: int) -> int | None:
    """The axis of a layer's result that holds its nodes, None if it cannot be told."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return 1
    if layer_type_of(module) is not None:
        return x.dim() - 1
    axes = [axis for axis in range(1, x.dim()) if x.shape[axis] == size]
    return axes[0] if len(axes) == 1 else None
