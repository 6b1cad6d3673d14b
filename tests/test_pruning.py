import copy
import itertools
from collections import Counter
from math import nan

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from random_graphs import dense, flow_graphs, paths
from torch import nn
from torch.nn.utils import prune as torch_prune
from torch.utils.data import DataLoader, TensorDataset
from toy_models import DenseNet, Net, ResNet, SqueezeExcitation, UNet, VisionTransformer

from captum_nif import NIFAttribution
from captum_nif.graph.flow_graph import FlowGraph, Layer, Link
from captum_nif.network.node_flow import path_flow
from captum_nif.pruning import plot_pruning_curve, prune, pruning_curve
from captum_nif.pruning.wiring import copied
from captum_nif.tracing.tracer import trace


def graph_of(model, *shapes, weight=torch.rand, layers=None):
    """The model's layers and links, with weights that have nothing to do with it."""
    inputs = tuple(torch.randn(2, *shape) for shape in shapes)
    structure = trace(model, inputs, layers=layers).structure
    size = {layer.name: layer.size for layer in structure.layers}
    links = [Link(a, b, weight(size[a], size[b])) for a, b in structure.links]
    return FlowGraph(structure.layers, links)


def with_weight(graph, ends, weight):
    links = [Link(*x.ends, weight if x.ends == ends else x.weight) for x in graph.links]
    return FlowGraph(graph.layers, links)


def mlp(*widths, activation=nn.ReLU):
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1]).eval()


def zeros(model):
    return sum(int((p == 0).sum()) for p in plain(model).parameters())


def same(state, other):
    return state.keys() == other.keys() and all(
        torch.equal(value, other[key]) for key, value in state.items()
    )


def plain(model):
    """A copy with masks made permanent."""
    model = copied(model)
    for module in model.modules():
        for name in ("weight", "bias"):
            if hasattr(module, f"{name}_mask"):
                torch_prune.remove(module, name)
    return model


# --- which weights a link has: cut one, and see what no longer gets through -----------


class Pinned:
    """Runs a model whose layers give what they gave before, but for one of them.

    So what arrives at that layer comes from the layers that it reads, and from nowhere
    else.
    """

    def __init__(self, model, names, x):
        self.model, self.names, self.x = model, names, x
        self.outputs = {}
        self.run()

    def run(self, target=None, **changed):
        counts, seen = Counter(), {}
        pinned = {**self.outputs, **changed} if target else {}

        def hook(module, args, output):
            path = next(p for p, m in self.model.named_modules() if m is module)
            count = counts[path]
            counts[path] += 1
            name = f"{path}:{count}" if f"{path}:{count}" in self.names else path
            seen[name] = output.clone()
            return pinned[name].clone() if name in pinned and name != target else None

        modules = {
            self.model.get_submodule(name.split(":")[0])
            for name in self.names
            if name.split(":")[0] in dict(self.model.named_modules())
        }
        handles = [module.register_forward_hook(hook) for module in modules]
        with torch.no_grad():
            self.model(changed.get("input", self.x))
        for handle in handles:
            handle.remove()
        if not target:
            self.outputs = seen
        return seen.get(target)


def channel_axis(module):
    return -1 if isinstance(module, nn.Linear) else 1


def disturbed(x, index, axis):
    """Another value in one channel."""
    noise = torch.zeros_like(x)
    noise.select(axis, index).copy_(1 + 3 * torch.rand_like(x.select(axis, index)))
    return x + noise


def shuffled(x):
    n, c, *rest = x.shape
    return x.view(n, 2, c // 2, *rest).transpose(1, 2).reshape(x.shape)


WIRED = {
    "mlp": (lambda: mlp(4, 6, 5, 3), (4,)),
    "flatten": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 4),
        ),
        (2, 6, 6),
    ),
    "flatten, channels last": (
        lambda: Net(
            lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1).flatten(1)),
            a=nn.Conv2d(1, 3, 3),
            b=nn.Linear(12, 4),
        ),
        (1, 4, 4),
    ),
    "concatenation": (
        lambda: Net(
            lambda m, x: m.c(torch.cat([m.b(x).relu(), m.a(x).relu()], 1)),
            a=nn.Linear(3, 4),
            b=nn.Linear(3, 4),
            c=nn.Linear(8, 3),
        ),
        (3,),
    ),
    "late input": (
        lambda: Net(
            lambda m, x: m.b(torch.cat([x, m.a(x).relu()], 1)),
            a=nn.Linear(3, 4),
            b=nn.Linear(7, 3),
        ),
        (3,),
    ),
    "grouped": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 4, 1)
        ),
        (1, 6, 6),
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3, groups=4), nn.Conv1d(4, 3, 1)
        ),
        (2, 8),
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(1, 4, 2),
            nn.ConvTranspose2d(4, 6, 2, groups=2),
            nn.Conv2d(6, 3, 1),
        ),
        (1, 4, 4),
    ),
    "channels shuffled": (
        lambda: Net(
            lambda m, x: m.b(shuffled(m.a(x))),
            a=nn.Conv2d(1, 6, 1),
            b=nn.Conv2d(6, 2, 1),
        ),
        (1, 3, 3),
    ),
    "pixels to channels": (
        lambda: Net(
            lambda m, x: m.b(F.pixel_unshuffle(m.a(x), 2)),
            a=nn.Conv2d(1, 2, 1),
            b=nn.Conv2d(8, 3, 1),
        ),
        (1, 4, 4),
    ),
    "tokens": (
        lambda: Net(
            lambda m, x: m.b(m.a(x).relu().transpose(1, 2).flatten(1)),
            a=nn.Linear(3, 4),
            b=nn.Linear(20, 3),
        ),
        (5, 3),
    ),
    "called twice": (
        lambda: Net(
            lambda m, x: m.c(m.b(m.b(m.a(x).tanh()).tanh()).tanh()),
            a=nn.Linear(3, 4),
            b=nn.Linear(4, 4),
            c=nn.Linear(4, 2),
        ),
        (3,),
    ),
    "residual": (lambda: ResNet(option_a=False), (1, 8, 8)),
    "dense": (DenseNet, (1, 4, 4)),
    "squeeze and excite": (SqueezeExcitation, (1, 5, 5)),
    "U": (UNet, (1, 4, 4)),
}


def weakest(graph, link, i, j):
    """The graph with one entry of a link as the least important in the network."""

    def weight(each):
        module = each.target.split(":")[0]
        if module != link.target.split(":")[0]:
            return each.weight
        found = torch.full_like(each.weight, 1e5)
        if each is link:
            found[i, j] = 0.0
        return found

    links = [Link(*each.ends, weight(each)) for each in graph.links]
    return FlowGraph(graph.layers, links)


@pytest.mark.parametrize("name", WIRED)
def test_a_connection_is_its_links_and_nothing_else(name):
    make, shape = WIRED[name]
    model = make().eval()
    graph = graph_of(model, shape, weight=lambda a, b: torch.full((a, b), 1e6))
    names = [layer.name for layer in graph.layers]
    before = Pinned(model, names, torch.randn(6, *shape))
    modules = dict(model.named_modules())
    for link in graph.links:
        if link.target == "output" or link.source == "input":
            continue
        source, target = (modules[end.split(":")[0]] for end in link.ends)
        axis = channel_axis(target)
        cut = 0
        for i, j in itertools.product(*map(range, link.weight.shape)):
            changed = {
                link.source: disturbed(
                    before.outputs[link.source], i, channel_axis(source)
                )
            }
            usual = before.run(link.target, **changed)
            still = before.outputs[link.target].select(axis, j)
            if torch.equal(usual.select(axis, j), still):
                continue  # dead, or of another group of channels
            pruned = prune(model, weakest(graph, link, i, j), 1)
            after = Pinned(pruned, names, before.x)
            after.outputs = before.outputs
            cut_off, base = after.run(link.target, **changed), after.run(link.target)
            assert torch.equal(cut_off.select(axis, j), base.select(axis, j))
            for other in set(range(usual.shape[axis])) - {j}:
                assert torch.equal(
                    cut_off.select(axis, other), usual.select(axis, other)
                )
            others = disturbed(before.outputs[link.source], i - 1, channel_axis(source))
            if link.weight.shape[0] > 1 and name != "depthwise":
                open_ = before.run(link.target, **{link.source: others}).select(axis, j)
                left = after.run(link.target, **{link.source: others}).select(axis, j)
                if not torch.equal(open_, still):
                    assert not torch.equal(left, base.select(axis, j))
            cut += 1
            if cut == 2:
                break
        assert cut, link


@pytest.mark.parametrize("color", [0, 1, 2])
def test_a_kernel_over_a_color_goes_when_its_pixels_say_nothing(color):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
    ).eval()
    graph = graph_of(model, (3, 5, 5), weight=lambda a, b: 1 + torch.rand(a, b))
    weight = graph.links[0].weight.clone().view(3, 25, 4)
    weight[color, :, 2] = 0.01 * torch.rand(25)
    pruned = prune(model, with_weight(graph, ("input", "0"), weight.view(75, 4)), 1)
    kept = torch.ones(4, 3, 3, 3)
    kept[2, color] = 0
    assert torch.equal(pruned[0].weight_mask, kept)
    assert torch.equal(pruned[3].weight_mask, torch.ones(2, 36))


def test_what_is_added_counts_together():
    model = Net(
        lambda m, x: m.c(m.a(x).relu() + m.b(x).tanh()),
        a=nn.Linear(3, 2),
        b=nn.Linear(3, 2),
        c=nn.Linear(2, 2),
    )
    graph = graph_of(model, (3,), weight=lambda a, b: torch.full((a, b), 100.0))
    for source, weight in (("a", [[1, 9], [5, 5]]), ("b", [[9, 9], [3, 1]])):
        graph = with_weight(graph, (source, "c"), torch.tensor(weight).float())
    # by input and output of c: 1 + 9, 9 + 9; 5 + 3, 5 + 1
    assert prune(model, graph, 1).c.weight_mask.tolist() == [[1, 1], [1, 0]]
    assert prune(model, graph, 2).c.weight_mask.tolist() == [[1, 0], [1, 0]]
    assert prune(model, graph, 3).c.weight_mask.tolist() == [[0, 0], [1, 0]]


def test_shortcuts_that_pad_channels_shift_them():
    model = ResNet().eval()
    graph = graph_of(model, (1, 8, 8), weight=lambda a, b: torch.full((a, b), 10.0))
    weight = torch.full((2, 3), 10.0)
    weight[0, 1] = 0.0  # the stem's channel 0 is channel 1 of 4 where fc reads it
    for source in ("stem", "block1.conv2"):
        graph = with_weight(graph, (source, "fc"), weight)
    graph = with_weight(graph, ("block2.conv2", "fc"), torch.zeros(4, 3))
    pruned = prune(model, graph, 3 * 2 + 1)
    # channels 0 and 3 are block2's alone, and carry nothing either
    kept = [[0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 1, 0]]
    assert pruned.fc.weight_mask.tolist() == kept


def test_norms_keep_channels_in_place():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.LayerNorm(6),
        nn.Linear(6, 2),
    ).eval()
    graph = graph_of(model, (1, 4, 4), weight=lambda a, b: 1 + torch.rand(a, b))
    into_linear = 1 + torch.rand(4, 6)
    into_linear[2, 5] = 0
    into_last = 1 + torch.rand(6, 2)
    into_last[3, 0] = 0
    graph = with_weight(graph, ("0", "4"), into_linear)
    pruned = prune(model, with_weight(graph, ("4", "6"), into_last), 2)
    assert (pruned[4].weight_mask == 0).nonzero().tolist() == [
        [5, place] for place in range(8, 12)
    ]
    assert (pruned[6].weight_mask == 0).nonzero().tolist() == [[0, 3]]


def test_transformers_are_pruned_where_weights_can_be_told():
    model = VisionTransformer().eval()
    graph = graph_of(model, (1, 8, 8))
    pruned = prune(model, graph, 1.0)
    for module in (pruned.patch, pruned.mlp[0], pruned.mlp[2], pruned.head):
        assert not module.weight.any()
    assert pruned.attention.in_proj_weight.all()


# --- which are pruned -----------------------------------------------------------------


@pytest.mark.parametrize("amount", [0, 1, 17, 59, 60, 0.0, 0.3, 1.0, np.int64(4)])
def test_the_smallest_links_of_the_network_are_zeroed(amount):
    model = mlp(4, 6, 5, 1)
    graph = graph_of(model, (4,), weight=torch.randn)
    entries = sorted(
        (abs(value), name, j, i)
        for name, link in zip(("0", "2", "4"), graph.links, strict=True)
        for i, row in enumerate(link.weight.tolist())
        for j, value in enumerate(row)
    )
    count = round(amount * 59) if isinstance(amount, float) else min(amount, 59)
    gone = {
        place for _, *place in map(tuple, entries[:count]) for place in [tuple(place)]
    }
    pruned = prune(model, graph, count if isinstance(amount, int) else amount)
    found = {
        (name, *place)
        for name in ("0", "2", "4")
        for place in (pruned.get_submodule(name).weight == 0).nonzero().tolist()
    }
    assert found == gone


def test_links_as_large_as_weights_give_the_l1_pruning_of_torch():
    model = mlp(4, 6, 5, 3)
    graph = graph_of(model, (4,))
    for n, link in zip((0, 2, 4), graph.links, strict=True):
        graph = with_weight(graph, link.ends, model[n].weight.detach().abs().T)
    expected = copy.deepcopy(model)
    torch_prune.global_unstructured(
        [(expected[n], "weight") for n in (0, 2, 4)],
        pruning_method=torch_prune.L1Unstructured,
        amount=0.4,
    )
    assert same(prune(model, graph, 0.4).state_dict(), expected.state_dict())


def test_of_equals_the_first_go_first():
    model = mlp(2, 3)
    graph = graph_of(model, (2,), weight=torch.ones)
    assert prune(model, graph, 4)[0].weight_mask.T.tolist() == [[0, 0, 0], [0, 1, 1]]


def test_weights_of_a_module_called_twice_count_both_calls():
    model = Net(
        lambda m, x: m.b(m.b(m.a(x)).relu()), a=nn.Linear(2, 2), b=nn.Linear(2, 2)
    )
    graph = graph_of(model, (2,), weight=lambda a, b: torch.full((a, b), 100.0))
    first, second = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[9.0, 1], [1, 1]])
    graph = with_weight(graph, ("a", "b"), first)
    graph = with_weight(graph, ("b", "b:1"), second)
    # 10, 3; 4, 5: by input, then output
    assert prune(model, graph, 2).b.weight_mask.T.tolist() == [[1, 0], [0, 1]]


def test_tied_weights_are_pruned_as_one():
    model = mlp(3, 3, 3)
    model[2].weight = model[0].weight
    graph = graph_of(model, (3,))
    pruned = prune(model, graph, 4)
    both = graph.links[0].weight + graph.links[1].weight
    fourth = both.flatten().sort().values[3]
    assert torch.equal(pruned[0].weight_mask, (both > fourth).T.float())
    assert torch.equal(pruned[2].weight_mask, pruned[0].weight_mask)
    assert pruned[2].weight_orig is pruned[0].weight_orig
    x = torch.randn(5, 3)
    assert torch.equal(plain(pruned)(x), pruned(x))


def test_sparse_graphs_are_pruned_where_they_have_no_link():
    model = mlp(4, 6, 3)
    graph = graph_of(model, (4,))
    strongest = graph.top(0.5)
    dropped = {x.ends: x.weight.to_dense().T == 0 for x in strongest.links}
    count = sum(int(mask.sum()) for mask in dropped.values())
    pruned = prune(model, strongest, count)
    for n, mask in zip((0, 2), dropped.values(), strict=True):
        assert torch.equal(pruned[n].weight_mask == 0, mask)


# --- how they are pruned --------------------------------------------------------------


def test_the_model_is_left_alone_unless_inplace(rng_untouched):
    model = mlp(3, 4, 2).train()
    before = copy.deepcopy(model.state_dict())
    graph = graph_of(model, (3,))
    with rng_untouched():
        pruned = prune(model, graph, 0.5)
    assert pruned is not model
    assert model.training
    assert pruned.training
    assert model.state_dict().keys() == before.keys()
    assert all(
        torch.equal(value, before[key]) for key, value in model.state_dict().items()
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert prune(model, graph, 0.5, inplace=True) is model
    assert torch.equal(model[0].weight, pruned[0].weight)


def test_a_pruned_model_trains_on_and_zeros_stay():
    model = mlp(4, 8, 3)
    pruned = prune(model, graph_of(model, (4,)), 0.6).train()
    masks = [pruned[n].weight_mask.clone() for n in (0, 2)]
    before = [pruned[n].weight.detach().clone() for n in (0, 2)]
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.5)
    x, y = torch.randn(32, 4), torch.randint(3, (32,))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(pruned(x), y).backward()
        for n, mask in zip((0, 2), masks, strict=True):
            assert not pruned[n].weight_orig.grad[mask == 0].any()
        optimizer.step()
    pruned(x)
    for n, mask, old in zip((0, 2), masks, before, strict=True):
        assert not pruned[n].weight[mask == 0].any()
        assert not torch.equal(pruned[n].weight, old)


def test_masks_are_in_the_state_dict_and_can_be_made_permanent():
    model = mlp(4, 8, 3)
    graph = graph_of(model, (4,))
    pruned = prune(model, graph, 0.6, level="node")
    keys = {
        f"0.{name}_{part}" for name in ("weight", "bias") for part in ("orig", "mask")
    }
    assert set(pruned.state_dict()) == keys | {"2.weight", "2.bias"}
    other = prune(mlp(4, 8, 3), graph, 0.1, level="node")
    other.load_state_dict(pruned.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(other(x), pruned(x))
    for name in ("weight", "bias"):
        torch_prune.remove(other[0], name)
    assert set(other.state_dict()) == set(model.state_dict())
    assert torch.equal(other(x), pruned(x))


def test_pruning_again_prunes_what_is_left():
    model = mlp(4, 6, 3)
    graph = graph_of(model, (4,))  # 42 connections
    once = prune(model, graph, 12)
    once(torch.randn(2, 4)).sum().backward()  # weight is now a result of autograd
    twice = prune(once, graph, 0.5)
    assert zeros(once) == 12
    assert zeros(twice) == 12 + 15
    assert torch.equal(twice[0].weight, prune(model, graph, 27)[0].weight)
    with pytest.raises(ValueError, match=r"16.* 15 connections left"):
        prune(twice, graph, 16)
    assert zeros(prune(twice, graph, 1.0)) == 42


def test_half_a_kernel_is_a_connection_left():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    graph = graph_of(model, (1, 3, 3))
    mask = torch.ones(2, 1, 2, 2)
    mask[0, 0, 0] = 0
    mask[1] = 0
    torch_prune.custom_from_mask(model[0], "weight", mask)
    pruned = prune(model, graph, 1.0)  # 1 kernel and 2 x 2 maps to neurons
    assert not pruned[0].weight.any()
    with pytest.raises(ValueError, match=r"6.* 5 connections"):
        prune(model, graph, 6)


def test_half_precision_and_frozen_models():
    model = mlp(4, 6, 3).to(torch.bfloat16).requires_grad_(False)
    graph = graph_of(mlp(4, 6, 3), (4,))
    pruned = prune(model, graph, 0.5)
    assert pruned[0].weight_mask.dtype == torch.bfloat16
    assert zeros(pruned) == 21
    assert not pruned[0].weight_orig.requires_grad


# --- nodes ----------------------------------------------------------------------------


@given(flow_graphs())
def test_path_flow_is_the_share_of_the_paths_through_a_node(graph):
    weight = dense(graph)
    pairs = list(weight)
    chain = all(len({p[n] for p in pairs}) == len(pairs) for n in (0, 1))
    if not chain:
        for target in {target for _, target in pairs}:
            into = [ends for ends in pairs if ends[1] == target]
            for node in range(graph.layer(target).size):
                total = sum(abs(row[node]) for ends in into for row in weight[ends])
                for row in (row for ends in into for row in weight[ends]):
                    row[node] = row[node] / (total or 1)
    ends = {
        kind: [
            (x.name, i) for x in graph.layers if x.kind == kind for i in range(x.size)
        ]
        for kind in ("input", "output")
    }
    through, total = Counter(), 0.0
    for start, end in itertools.product(ends["input"], ends["output"]):
        for path in paths(graph, start, end):
            value = 1.0
            for (a, i), (b, j) in itertools.pairwise(path):
                value *= abs(weight[a, b][i][j])
            total += value
            for node in path:
                through[node] += value
    found = path_flow(graph)
    for layer in graph.layers:
        expected = [through[layer.name, i] / (total or 1) for i in range(layer.size)]
        assert found[layer.name].tolist() == pytest.approx(expected, abs=1e-12)


def test_nodes_on_the_weakest_paths_go_first():
    model = mlp(2, 2, 2, 1)
    graph = graph_of(model, (2,))
    for ends, weight in (
        (("input", "0"), [[0.5, 0.1], [0.5, 0.2]]),
        (("0", "2"), [[0.1, 0.9], [0.9, 0.9]]),
        (("2", "4"), [[0.3], [0.9]]),
    ):
        graph = with_weight(graph, ends, torch.tensor(weight))
    # Sums from the inputs 1, 0.3 | 0.37, 1.17, to the output 0.84, 1.08 | 0.3, 0.9:
    # products 0.84, 0.324 | 0.111, 1.053.
    order = [("2", 0), ("0", 1), ("0", 0), ("2", 1)]
    for count in range(5):
        pruned = prune(model, graph, count, level="node")
        gone = set(order[:count])
        for name in ("0", "2"):
            module = pruned.get_submodule(name)
            for node in range(2):
                kept = (name, node) not in gone
                assert bool(module.weight_mask[node].all()) is kept
                assert bool(module.weight_mask[node].any()) is kept
                assert bool(module.bias_mask[node]) is kept
        assert not hasattr(pruned[4], "weight_mask")


def scrambled(model):
    """Norms that would not let a zero through."""
    for module in model.modules():
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(module, name, None)
            if value is not None:
                value.data.uniform_(0.5, 1.5)
    return model.eval()


NORMED = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "two norms": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(1, 4)),
    "none": nn.Identity,
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", NORMED)
def test_a_pruned_channel_is_silent(norm, training):
    model = scrambled(
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            NORMED[norm](),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 2),
        )
    )
    pruned = prune(model, graph_of(model, (1, 6, 6)), 2, level="node")
    gone = ~pruned[0].weight_mask.flatten(1).any(1)
    assert gone.sum() == 2
    pruned.train(training)
    value = pruned[:3](torch.randn(8, 1, 6, 6))
    assert not value[:, gone].any()
    assert (value[:, ~gone].transpose(0, 1).flatten(1).std(1) > 0).all()


def test_a_pruned_neuron_behind_a_layer_norm_is_silent():
    model = scrambled(nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)))
    pruned = prune(model, graph_of(model, (3,)), 2, level="node")
    gone = ~pruned[0].weight_mask.any(1)
    assert gone.sum() == 2
    assert not pruned[:2](torch.randn(8, 3))[:, gone].any()


def test_a_pruned_neuron_before_a_sigmoid_is_constant():
    model = mlp(3, 5, 2, activation=nn.Sigmoid)
    pruned = prune(model, graph_of(model, (3,)), 2, level="node")
    gone = ~pruned[0].weight_mask.any(1)
    values = trace(pruned, (torch.randn(10, 3),)).values["0"]
    assert (values[:, gone] == 0.5).all()
    assert gone.sum() == 2
    assert (values[:, ~gone].std(0) > 0).all()


def test_norms_that_others_read_too_are_left_alone():
    model = scrambled(
        Net(
            lambda m, x: m.c(m.norm(m.a(x) + m.b(x)).relu()),
            a=nn.Conv2d(1, 3, 1),
            b=nn.Conv2d(1, 3, 1),
            norm=nn.BatchNorm2d(3),
            c=nn.Conv2d(3, 2, 1),
        )
    )
    pruned = prune(model, graph_of(model, (1, 3, 3)), 3, level="node")
    assert pruned.norm.weight.all()
    values = trace(pruned, (torch.randn(4, 1, 3, 3),)).values
    gone = {
        name: ~pruned.get_submodule(name).weight_mask.flatten(1).any(1) for name in "ab"
    }
    assert sum(int(mask.sum()) for mask in gone.values()) == 3
    for name, mask in gone.items():
        assert not values[name][:, mask].any()


def test_a_concatenation_behind_one_norm_loses_the_channels_of_pruned_nodes():
    model = scrambled(
        Net(
            lambda m, x: m.c(m.norm(torch.cat([m.b(x), m.a(x)], 1)).relu()),
            a=nn.Conv2d(1, 2, 1),
            b=nn.Conv2d(1, 3, 1),
            norm=nn.BatchNorm2d(5),
            c=nn.Conv2d(5, 2, 1),
        )
    )
    pruned = prune(model, graph_of(model, (1, 3, 3)), 2, level="node")
    kept = [pruned.get_submodule(name).bias_mask for name in "ba"]
    assert torch.equal(pruned.norm.weight_mask, torch.cat(kept))
    assert torch.equal(pruned.norm.bias_mask, torch.cat(kept))


def test_a_hidden_layer_called_twice_loses_a_neuron_in_both_calls():
    model = Net(
        lambda m, x: m.c(m.b(m.b(m.a(x).relu()).relu()).relu()),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 4),
        c=nn.Linear(4, 2),
    )
    graph = graph_of(model, (3,))
    flow = path_flow(graph)
    shares = torch.cat([flow["a"], flow["b"] + flow["b:1"]])
    pruned = prune(model, graph, 3, level="node")
    kept = torch.cat([pruned.a.bias_mask, pruned.b.bias_mask])
    assert torch.equal(kept == 0, shares <= shares.sort().values[2])


# --- the names of layers --------------------------------------------------------------


def test_layers_called_input_and_output():
    model = Net(
        lambda m, x: m.output(m.input(x).relu()),
        input=nn.Linear(3, 4),
        output=nn.Linear(4, 2),
    )
    pruned = prune(model, graph_of(model, (3,)), 1.0)
    assert not pruned.input.weight.any()
    assert not pruned.output.weight.any()
    hidden = Net(
        lambda m, x: m.output(x).relu() * m.other(x).relu(),
        output=nn.Linear(3, 2),
        other=nn.Linear(3, 2),
    )
    pruned = prune(hidden, graph_of(hidden, (3,)), 1.0)
    assert not pruned.output.weight.any()


def test_a_model_that_is_one_layer():
    model = nn.Linear(3, 2)
    assert zeros(prune(model, graph_of(model, (3,)), 2)) == 2


def test_blocks_as_layers_are_sources_and_keep_their_weights():
    block = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.ReLU())
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(16, 2)).eval()
    graph = graph_of(model, (1, 4, 4), layers=["0", "2"])
    weight = 1 + torch.rand(4, 2)
    weight[1, 0] = 0
    pruned = prune(model, with_weight(graph, ("0", "2"), weight), 1)
    gone = (pruned[2].weight_mask == 0).nonzero().tolist()
    assert gone == [[0, place] for place in range(4, 8)]
    assert all(p.all() for p in pruned[0].parameters())


def test_token_models_are_pruned_with_an_example():
    model = Net(
        lambda m, x, scale: m.b(m.a(m.embed(x)).relu().mean(1) * scale),
        embed=nn.Embedding(7, 3),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 2),
    )
    x = torch.randint(7, (4, 5))
    structure = trace(model, (x,), (2.0,)).structure
    size = {layer.name: layer.size for layer in structure.layers}
    links = [Link(a, b, torch.rand(size[a], size[b])) for a, b in structure.links]
    graph = FlowGraph(structure.layers, links)
    with pytest.raises(ValueError, match="example_inputs"):
        prune(model, graph, 0.5)
    pruned = prune(model, graph, 0.5, example_inputs=(x, 2.0))
    assert zeros(pruned) == 10
    assert pruned.embed.weight.all()


# --- what is left alone, and refused --------------------------------------------------


def test_layers_whose_weights_cannot_be_told_apart_are_named():
    model = Net(
        lambda m, x: m.b(
            torch.cat([F.layer_norm(m.a(x), (4,)), x], 1)[:, :4].cumsum(1)
        ),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 2),
    )
    layers = [
        Layer("input", 3, "input"),
        Layer("a", 4, "hidden"),
        Layer("b", 2, "output"),
    ]
    links = [Link("input", "a", torch.rand(3, 4)), Link("a", "b", torch.rand(4, 2))]
    # columns as many as nodes: taken to keep their places
    assert zeros(prune(model, FlowGraph(layers, links), 1.0)) == 12 + 8
    wide = Net(
        lambda m, x: m.b(F.layer_norm(m.a(x), (4,)).repeat(1, 2)),
        a=nn.Linear(3, 4),
        b=nn.Linear(8, 2),
    )
    with pytest.warns(UserWarning, match="'b' .*mixed"):
        pruned = prune(wide, FlowGraph(layers, links), 1.0)
    assert not pruned.a.weight.any()
    assert pruned.b.weight.all()


def test_weights_behind_layers_that_the_user_left_out_are_left_alone():
    model = mlp(4, 4, 4, 4)
    graph = graph_of(model, (4,), layers=["0", "4"])
    with pytest.warns(UserWarning, match="'4' .*mixed"):
        pruned = prune(model, graph, 1.0)
    assert [bool(pruned[n].weight.any()) for n in (0, 2, 4)] == [False, True, True]


@pytest.mark.parametrize("level", ["link", "node"])
def test_weights_that_an_embedding_shares_are_left_alone(level):
    model = Net(
        lambda m, x: m.c(m.b(m.a(x).relu()).relu()),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 5),
        c=nn.Linear(5, 2),
        embed=nn.Embedding(5, 4),
    )
    model.embed.weight = model.b.weight
    with pytest.warns(UserWarning, match="'b' .tied to 'embed'"):
        pruned = prune(model, graph_of(model, (3,)), 1.0, level=level)
    assert pruned.b.weight.all()
    assert not pruned.a.weight.any()


def bad_inputs():
    model = mlp(4, 6, 3)
    graph = graph_of(model, (4,))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    grouped = FlowGraph(
        [Layer("input", 2, "input"), *graph.layers[1:]],
        [Link("input", "0", torch.rand(2, 6)), graph.links[1]],
    )
    recurrent = Net(lambda m, x: m.a(x)[0], a=nn.LSTM(4, 3, batch_first=True))
    missing = FlowGraph(graph.layers, graph.links[1:])
    return {
        "share above 1": (model, graph, 1.01, "link", ValueError, r"\[0, 1\].*1.01"),
        "negative": (model, graph, -0.1, "link", ValueError, r"-0.1"),
        "not a number": (model, graph, float("nan"), "node", ValueError, "nan"),
        "too many": (model, graph, 43, "link", ValueError, "42 connections left"),
        "too many nodes": (model, graph, 7, "node", ValueError, "6 nodes left"),
        "fewer than none": (model, graph, -1, "node", ValueError, "-1"),
        "bool": (model, graph, True, "link", TypeError, "True"),
        "text": (model, graph, "half", "link", TypeError, "half"),
        "level": (model, graph, 0.5, "layer", ValueError, "layer"),
        "no graph": (model, graph.links, 0.5, "link", TypeError, "FlowGraph"),
        "no model": (lambda x: x, graph, 0.5, "link", TypeError, "Module"),
        "other names": (nn.Linear(4, 3), graph, 0.5, "link", ValueError, "another"),
        "other sizes": (mlp(4, 5, 3), graph, 0.5, "link", ValueError, "another"),
        "other inputs": (mlp(5, 6, 3), graph, 0.5, "link", ValueError, "another"),
        "other links": (model, missing, 0.5, "link", ValueError, "no such link"),
        "other links, nodes": (model, missing, 1, "node", ValueError, "no such link"),
        "one layer": (
            model,
            FlowGraph(graph.layers[:1], []),
            0.5,
            "link",
            ValueError,
            "no connections to prune",
        ),
        "groups": (model, grouped, 0.5, "link", ValueError, "groups of features"),
        "scripted": (
            torch.jit.trace(model, torch.zeros(1, 4), check_trace=False),
            graph,
            0.5,
            "link",
            NotImplementedError,
            "scripted",
        ),
        "computed weight": (
            normed,
            graph_of(normed, (4,)),
            0.5,
            "link",
            ValueError,
            "remove_parametrizations",
        ),
        "nothing to prune": (
            recurrent,
            graph_of(recurrent, (5, 4)),
            0.5,
            "link",
            ValueError,
            "no connections to prune",
        ),
        "no hidden nodes": (
            nn.Linear(4, 3),
            graph_of(nn.Linear(4, 3), (4,)),
            0.5,
            "node",
            ValueError,
            "no nodes to prune",
        ),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("inplace", [False, True])
def test_bad_input_is_refused_and_changes_nothing(inplace):
    for name, (model, graph, amount, level, error, message) in bad_inputs().items():
        before = copy.deepcopy(model.state_dict()) if name != "no model" else {}
        with pytest.raises(error, match=message):
            prune(model, graph, amount, level=level, inplace=inplace)
        if before:
            assert same(model.state_dict(), before)


@pytest.mark.parametrize("options", [{"nodes": "neuron"}, {"preset": "gradient_free"}])
@pytest.mark.parametrize("level", ["link", "node"])
def test_graphs_of_neurons_within_maps_are_refused_and_of_channels_taken(
    options, level
):
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 2),
    ).eval()
    x = torch.randn(60, 2, 4, 4)
    graph = NIFAttribution(model, **options).fit(x).flow()
    assert graph.layer("0").shape == (6, 2, 2)
    with pytest.raises(
        ValueError, match=r"'0' has 24 neurons.*6 feature maps.*channel"
    ):
        prune(model, graph, 0.5, level=level)
    # What the message says to do.
    of_channels = NIFAttribution(model, **options | {"nodes": "channel"}).fit(x).flow()
    pruned = prune(model, of_channels, 0.5, level=level)
    assert any(bool((mask == 0).any()) for mask in pruned.buffers())


def test_graphs_of_neurons_serve_where_each_channel_is_one():
    model = mlp(4, 6, 3)
    x = torch.randn(60, 4)
    graph = NIFAttribution(model, preset="gradient_free").fit(x).flow()
    weights = [link.weight.abs() for link in graph.links]
    least = torch.cat([w.flatten() for w in weights]).sort().values[20]
    pruned = prune(model, graph, 20)
    masks = [m for name, m in pruned.named_buffers() if name.endswith("weight_mask")]
    for mask, weight in zip(masks, weights, strict=True):
        assert torch.equal(mask.mT == 0, weight < least)


def test_examples_that_do_not_fit_the_graph_are_refused():
    model = mlp(4, 6, 3)
    with pytest.raises(TypeError, match=r"tuple of all.* list"):
        prune(model, graph_of(model, (4,)), 0.5, example_inputs=[torch.randn(2, 4)])
    with pytest.raises(ValueError, match=r"\[5\] elements.*\[4\] nodes"):
        prune(model, graph_of(model, (4,)), 0.5, example_inputs=torch.randn(2, 5))
    with pytest.raises(ValueError, match="`example_inputs` holds NaN"):
        prune(model, graph_of(model, (4,)), 0.5, example_inputs=torch.full((2, 4), nan))


# --- curves ---------------------------------------------------------------------------


def labeled(model, n=300, shape=(4,)):
    """Samples whose classes the model gets mostly right."""
    x = torch.randn(n, *shape)
    with torch.no_grad():
        y = model(x).argmax(1)
    wrong = torch.rand(n) < 0.1
    return x, torch.where(wrong, (y + 1) % 3, y)


def accuracy_of(model, x, y):
    with torch.no_grad():
        return (model(x).argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("level", ["link", "node"])
def test_the_curve_of_nif_is_that_of_prune(level):
    model = scrambled(
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 6),
            nn.ReLU(),
            nn.Linear(6, 3),
        )
    )
    nn.init.normal_(model[6].weight)
    graph, (x, y) = graph_of(model, (1, 4, 4)), labeled(model, shape=(1, 4, 4))
    amounts = [0, 0.25, 5, 0.9, 1.0]
    rows = pruning_curve(model, graph, (x, y), level, amounts)
    found = [row for row in rows if row["method"] == "NIF"]
    for amount, row in zip(amounts, found, strict=True):
        pruned = prune(model, graph, amount, level=level)
        assert row["accuracy"] == pytest.approx(accuracy_of(pruned, x, y))
        masks = [b for key, b in pruned.named_buffers() if key.endswith("_mask")]
        assert row["zeroed"] == sum(int((mask == 0).sum()) for mask in masks)
    total = 4 + 4 * 6 + 6 * 3 if level == "link" else 4 + 6
    assert [row["pruned"] for row in found] == [
        0,
        round(total / 4),
        5,
        round(0.9 * total),
        total,
    ]


def test_the_curve_of_magnitude_is_that_of_torch():
    model = mlp(4, 6, 5, 3)
    x, y = labeled(model)
    rows = pruning_curve(model, graph_of(model, (4,)), (x, y), amounts=[0, 7, 0.5, 1.0])
    for row in (row for row in rows if row["method"] == "magnitude"):
        pruned = copy.deepcopy(model)
        torch_prune.global_unstructured(
            [(pruned[n], "weight") for n in (0, 2, 4)],
            pruning_method=torch_prune.L1Unstructured,
            amount=row["pruned"],
        )
        assert row["zeroed"] == row["pruned"]
        assert row["accuracy"] == pytest.approx(accuracy_of(pruned, x, y))


def test_kernels_and_nodes_are_measured_by_their_mean_weight():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2, bias=False)
    )
    with torch.no_grad():
        model[0].weight.copy_(
            torch.tensor([[2.0, 2, 0, 0], [3, 0, 0, 0]]).view(2, 1, 2, 2)
        )
        model[3].weight.copy_(torch.tensor([[0.7] * 4 + [5] * 4, [0.8] * 4 + [-5] * 4]))
    x, y = torch.randn(40, 1, 3, 3), torch.randint(2, (40,))
    graph = graph_of(model, (1, 3, 3))

    def zeroed(level):
        rows = pruning_curve(
            model, graph, (x, y), level, range(2 + 4 * (level == "link"))
        )
        return [row["zeroed"] for row in rows if row["method"] == "magnitude"]

    # means 0.7, 0.75 (the second kernel), 0.8, 1 (the first), 5
    assert zeroed("link") == [0, 4, 8, 12, 16, 20]
    assert zeroed("node") == [0, 5]
    rows = pruning_curve(model, graph, (x, y), "node", [1])
    by_hand = copy.deepcopy(model)
    by_hand[0].weight.data[1], by_hand[0].bias.data[1] = 0, 0
    assert rows[1]["method"] == "magnitude"
    assert rows[1]["accuracy"] == pytest.approx(accuracy_of(by_hand, x, y))


def test_neurons_that_are_seldom_active_go_first():
    model = mlp(4, 5, 3)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.0, -9, 9, -1, 1]))
    x, y = labeled(model)
    rows = pruning_curve(model, graph_of(model, (4,)), (x, y), "node", range(6))
    active = (model[0](x) > 0).double().mean(0)
    order = active.argsort(stable=True).tolist()
    assert len(set(active.tolist())) > 2
    for row in (row for row in rows if row["method"] == "zero activation"):
        by_hand = copy.deepcopy(model)
        by_hand[0].weight.data[order[: row["pruned"]]] = 0
        by_hand[0].bias.data[order[: row["pruned"]]] = 0
        assert row["accuracy"] == pytest.approx(accuracy_of(by_hand, x, y))


def test_random_orders_differ_and_repeat():
    model = mlp(4, 6, 3)
    data, graph = labeled(model), graph_of(model, (4,))
    rows = pruning_curve(model, graph, data, amounts=[0.5], n_random=6)
    assert rows == pruning_curve(model, graph, data, amounts=[0.5], n_random=6)
    drawn = [row for row in rows if row["method"] == "random"]
    assert [row["seed"] for row in drawn] == list(range(6))
    assert len({row["accuracy"] for row in drawn}) > 1
    assert {row["method"] for row in rows} == {"NIF", "magnitude", "random"}


def test_curves_take_loaders_and_leave_everything_as_it_was(rng_untouched):
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 3)
    ).train()
    x, y = torch.randn(300, 4), torch.randint(3, (300,))
    graph = graph_of(copy.deepcopy(model).eval(), (4,))
    before = copy.deepcopy(model.state_dict())
    loader = DataLoader(TensorDataset(x, y), batch_size=64)
    with rng_untouched():
        rows = pruning_curve(model, graph, (x, y), "node", n_random=2)
    assert rows == pruning_curve(model, graph, loader, "node", n_random=2)
    assert rows == pruning_curve(model, graph, iter([[x, y]]), "node", n_random=2)
    assert len(rows) == 5 * 21
    assert model.training
    assert all(
        torch.equal(value, before[key]) for key, value in model.state_dict().items()
    )


def test_curves_of_pruned_models_start_where_those_are():
    model = mlp(4, 6, 3)
    data, graph = labeled(model), graph_of(model, (4,))
    pruned = prune(model, graph, 10)
    pruned(data[0]).sum().backward()
    rows = pruning_curve(pruned, graph, data, amounts=[0, 5, 1.0], n_random=0)
    whole = pruning_curve(model, graph, data, amounts=[10, 15, 1.0], n_random=0)
    for row, other in zip(rows[:3], whole[:3], strict=True):
        assert (row["zeroed"], row["accuracy"]) == (other["zeroed"], other["accuracy"])
    assert [row["pruned"] for row in rows[:3]] == [0, 5, 32]


def test_models_with_two_inputs():
    model = Net(
        lambda m, x, y: m.b(m.a(x).relu() + y),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 2),
    )
    graph = graph_of(model, (3,), (4,))
    data = torch.randn(20, 3), torch.randn(20, 4), torch.randint(2, (20,))
    rows = pruning_curve(model, graph, data, amounts=[1.0], n_random=0)
    assert [row["zeroed"] for row in rows] == [20, 20]
    with torch.no_grad():
        constant = model.b.bias.argmax()
    assert rows[0]["accuracy"] == (data[2] == constant).double().mean()


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((torch.zeros(5, 4), torch.zeros(4).long()), ValueError, "same"),
        ((torch.zeros(5, 4), torch.zeros(5)), ValueError, "float32"),
        (
            (torch.full((5, 4), nan), torch.zeros(5).long()),
            ValueError,
            "data holds NaN",
        ),
        ((torch.zeros(5, 4), torch.full((5,), 3)), ValueError, "between 0 and 2"),
        ((torch.zeros(5, 4), torch.zeros(5, 1).long()), ValueError, r"\(5, 1\)"),
        ((torch.zeros(5, 4),), TypeError, "classes last"),
        ([], ValueError, "empty"),
        (torch.zeros(5, 4), TypeError, "classes last"),
        (7, TypeError, "int"),
        ([(torch.zeros(5, 4), [0] * 5)], TypeError, "list"),
    ],
)
def test_data_that_does_not_fit_is_refused(data, error, message):
    model = mlp(4, 6, 3)
    with pytest.raises(error, match=message):
        pruning_curve(model, graph_of(model, (4,)), data)


def test_curves_refuse_what_prune_refuses():
    model = mlp(4, 6, 3)
    data, graph = labeled(model), graph_of(model, (4,))
    with pytest.raises(ValueError, match="42 connections"):
        pruning_curve(model, graph, data, amounts=[0.5, 43])
    with pytest.raises(TypeError, match="n_random"):
        pruning_curve(model, graph, data, n_random=2.0)
    one = mlp(4, 6, 1)
    with pytest.raises(ValueError, match=r"C >= 2.*\(256, 1\)"):
        pruning_curve(one, graph_of(one, (4,)), data)


def test_a_plot_has_a_line_and_a_band_for_each_method():
    rows = [
        {
            "method": method,
            "seed": seed,
            "pruned": n,
            "zeroed": 2 * n,
            "accuracy": value,
        }
        for method, seed, values in (
            ("NIF", 0, [1.0, 0.75]),
            ("random", 0, [0.8, 0.5]),
            ("random", 1, [1.0, 0.25]),
        )
        for n, value in enumerate(values)
    ]
    ax = plot_pruning_curve(rows)
    nif, random = ax.get_lines()
    assert nif.get_xydata().tolist() == [[0, 1.0], [2, 0.75]]
    assert random.get_xydata().tolist() == [[0, 0.9], [2, 0.375]]
    band = ax.collections[1].get_paths()[0].vertices
    assert {tuple(point) for point in band} >= {(0, 0.8), (0, 1.0), (2, 0.25), (2, 0.5)}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "NIF",
        "random",
    ]
    assert plot_pruning_curve(rows, ax=ax) is ax
    with pytest.raises(ValueError, match="empty"):
        plot_pruning_curve([])
    ax.figure.clear()
